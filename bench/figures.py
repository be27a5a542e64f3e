"""The arithmetic of a benchmark: medians over rounds, and ratios within them. Pure."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

from bench.cases import RATIOS, Ratio
from bench.rounds import Figures, Round

_BUSY = 0.9  # of a core: beyond it a rate is the generator's limit, not the server's


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds."""

    median: float
    least: float
    most: float


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """What the rounds come to: each case's figures, the ratios, and the cases that the generator limited."""

    cases: dict[str, dict[str, Spread]]
    ratios: dict[str, Spread]
    limited: tuple[str, ...]


def summarise(rounds: Sequence[Round]) -> Summary:
    """Returns medians and spreads. A ratio is taken within each round: both sides met its noise."""
    names = rounds[0].keys()
    cases = {name: _spreads([each[name] for each in rounds]) for name in names}
    ratios = {ratio.name: spread(ratio_in(each, ratio) for each in rounds) for ratio in RATIOS}
    limited = tuple(name for name in names if _is_limited(cases[name]))
    return Summary(cases, ratios, limited)


def ratio_in(figures: Round, ratio: Ratio) -> float:
    """Returns a ratio in one round."""
    over, under = figures[ratio.over][ratio.figure], figures[ratio.under][ratio.figure]
    return over / under if over is not None and under else float("nan")


def spread(values: Iterable[float]) -> Spread:
    """Returns the median, the least and the most of values."""
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found))


def _spreads(figures: list[Figures]) -> dict[str, Spread]:
    known = {key: [value for each in figures if (value := each[key]) is not None] for key in figures[0]}
    return {key: spread(values) for key, values in known.items() if values}


def _is_limited(figures: dict[str, Spread]) -> bool:
    share = figures.get("generator_core_share")
    return share is not None and share.median > _BUSY
