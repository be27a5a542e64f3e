"""The arithmetic of a benchmark: medians over rounds, and ratios within them. Reads and writes nothing."""

import dataclasses
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence

from bench.targets import TARGETS, Outcome, Ratio, Target, Value, outcome

Figures = Mapping[str, float | None]
Round = Mapping[str, Figures]
_BUSY = 0.9  # of a core: beyond it a rate is the generator's limit, not the server's


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """The median and the range of a figure over the rounds."""

    median: float
    least: float
    most: float


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """The result of all rounds: the figures of each case and each target, as far as a round measured them.

    `limited`: the cases in which the generator was the limit. `wanted`: the targets that count, which are all
    but those of cases that this machine cannot run.
    """

    cases: dict[str, dict[str, Spread]]
    targets: dict[str, Spread]
    limited: tuple[str, ...]
    wanted: tuple[Target, ...] = TARGETS

    def outcome(self, target: Target) -> Outcome:
        """Returns whether the median meets a target."""
        found = self.targets.get(target.name)
        return outcome(target, found.median if found is not None else None)

    @property
    def missed(self) -> list[str]:
        """The labels of the targets that are not met."""
        return [target.label for target in self.wanted if not self.outcome(target).is_met]


def summarise(rounds: Sequence[Round], left_out: Collection[str] = ()) -> Summary:
    """Returns medians and ranges. A ratio is taken within each round, where both sides had the same noise.

    Args:
        rounds: the figures of each round, by case.
        left_out: the cases that this machine cannot run; their targets do not count.
    """
    names = dict.fromkeys(name for each in rounds for name in each)
    cases = {name: _spreads([each[name] for each in rounds if name in each]) for name in names}
    targets = {}
    wanted = tuple(target for target in TARGETS if target.source.cases.isdisjoint(left_out))
    for target in wanted:
        values = [value_in(each, target.source) for each in rounds]
        if known := [value for value in values if not math.isnan(value)]:
            targets[target.name] = spread(known)
    limited = tuple(name for name in names if _is_limited(cases[name]))
    return Summary(cases, targets, limited, wanted)


def value_in(figures: Round, source: Ratio | Value) -> float:
    """Returns the figure of a target in one round, NaN if it was not measured there."""
    if isinstance(source, Value):
        value = figures.get(source.case, {}).get(source.figure)
        return value * source.factor if value is not None else math.nan
    over, under = (figures.get(case, {}).get(source.figure) for case in (source.over, source.under))
    return over / under if over is not None and under else math.nan


def spread(values: Iterable[float]) -> Spread:
    """Returns the median, the smallest and the largest of some values."""
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found))


def _spreads(figures: list[Figures]) -> dict[str, Spread]:
    known = {key: [value for each in figures if (value := each[key]) is not None] for key in figures[0]}
    return {key: spread(values) for key, values in known.items() if values}


def _is_limited(figures: dict[str, Spread]) -> bool:
    share = figures.get("generator_core_share")
    return share is not None and share.median > _BUSY
