"""A benchmark's outcome as Markdown, which is also what the terminal shows, and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from bench.cases import RATIOS, labels
from bench.figures import Spread, Summary
from bench.rounds import Plan, Round

_MIB = 1 << 20
_HEADINGS = ("case", "steps/s", "p50", "p99", "server CPU a step", "peak memory")


@dataclasses.dataclass(frozen=True, slots=True)
class About:
    """What the figures belong to; `pinning` says which core had whom."""

    date: str
    machine: dict[str, str]
    pinning: str
    plan: Plan


def to_json(about: About, rounds: Sequence[Round], summary: Summary) -> dict[str, Any]:
    """Returns everything as plain values: what was measured, and what it comes to."""
    return {
        "about": dataclasses.asdict(about),
        "summary": dataclasses.asdict(summary),
        "rounds": list(rounds),
    }


def markdown(about: About, summary: Summary) -> str:
    """Returns the tables."""
    plan = about.plan
    versions = ", ".join(
        f"{key} {value}" for key, value in about.machine.items() if key not in ("cpu", "cores")
    )
    rounds = f"{plan.num_rounds} rounds" if plan.num_rounds > 1 else "one round"
    parts = [
        f"{about.machine['cpu']}, {about.machine['cores']} cores ({about.pinning}); {about.date}.",
        f"{versions}.",
        f"Medians of {rounds} of {plan.seconds:g} s each, all cases in every round. Latency is a message's.",
        "",
        _aligned(_HEADINGS, [_row(name, label, summary) for name, label in labels().items()]),
        "",
        _aligned(("ratio", "median", "least", "most"), [_ratio_row(summary, *each) for each in _ratios()]),
    ]
    if summary.limited:
        parts += ["", f"{_LIMITED} the generator was busy over 90 % of its core: the server could do more."]
    return "\n".join(parts) + "\n"


_LIMITED = "(*)"


def _ratios() -> list[tuple[str, str]]:
    return [(ratio.name, ratio.label) for ratio in RATIOS]


def _row(name: str, label: str, summary: Summary) -> tuple[str, ...]:
    figures = summary.cases[name]
    mark = f" {_LIMITED}" if name in summary.limited else ""
    peak = figures.get("peak_memory_bytes")
    return (
        label + mark,
        f"{figures['steps_per_second'].median:,.0f}",
        _milliseconds(figures.get("p50_seconds")),
        _milliseconds(figures.get("p99_seconds")),
        f"{figures['cpu_us_per_step'].median:,.1f} µs",
        f"{peak.median / _MIB:,.0f} MiB" if peak is not None else "",
    )


def _ratio_row(summary: Summary, name: str, label: str) -> tuple[str, ...]:
    ratio = summary.ratios[name]
    return (label, *(f"{value:.2f}" for value in (ratio.median, ratio.least, ratio.most)))


def _milliseconds(seconds: Spread | None) -> str:
    return f"{seconds.median * 1e3:,.2f} ms" if seconds is not None else ""


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table whose columns are aligned as text too."""
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    rule = [("-" * widths[0]), *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return f"| {' | '.join((first, *rest))} |"

    return "\n".join(line(row) for row in (headings, rule, *rows))
