"""The result of a benchmark as Markdown, which the terminal shows too, and as JSON."""

import dataclasses
from collections.abc import Callable
from typing import Any

from bench.cases import RESIDENT, labels
from bench.figures import Spread, Summary
from bench.rounds import Measured, Plan
from bench.tables import aligned, number, percent
from bench.targets import TRITON_NOTE, Target

_MIB = 1 << 20
_LIMITED = "(*)"
_LIMITED_NOTE = f"{_LIMITED} the generator was busy over 90 % of its core: the server could do more."
_LEGEND = (
    "Latency is a message's, in an open loop from its scheduled time. CPU µs: the server's, a step. "
    "server, gen.: the\nshare of a core that the server and the busiest generator process used. MiB: the "
    "server's peak memory.\nA server is all of its processes. Steps on 64 and 256 streams, and unary ones, "
    "come from bench.raw, all\nothers from loadtest."
)
_Show = Callable[[float], str]
_COLUMNS: tuple[tuple[str, str, _Show], ...] = (
    ("steps/s", "steps_per_second", lambda value: f"{value:,.0f}"),
    ("p50 ms", "p50_seconds", lambda value: number(value * 1e3)),
    ("p99 ms", "p99_seconds", lambda value: number(value * 1e3)),
    ("p99.9 ms", "p99_9_seconds", lambda value: number(value * 1e3)),
    ("CPU µs", "cpu_us_per_step", number),
    ("server", "server_core_share", percent),
    ("gen.", "generator_core_share", percent),
    ("MiB", "peak_memory_bytes", lambda value: f"{value / _MIB:,.0f}"),
)
_TARGET_HEADINGS = ("target", "outcome", "median", "least", "most", "goal", "stretch")


@dataclasses.dataclass(frozen=True, slots=True)
class About:
    """The conditions of the figures. `pinning`: the cores of the server and the generators, in words."""

    date: str
    machine: dict[str, str]
    pinning: str
    plan: Plan


def to_json(about: About, measured: Measured, summary: Summary) -> dict[str, Any]:
    """Returns everything as plain values: what was measured, and its summary."""
    return {
        "about": dataclasses.asdict(about),
        "targets": [_target_json(target, summary) for target in summary.wanted],
        "summary": {"cases": _plain(summary.cases), "limited": summary.limited},
        "cuda": measured.cuda,
        "no_envoy": measured.no_envoy,
        "rounds": list(measured.rounds),
    }


def markdown(about: About, measured: Measured, summary: Summary) -> str:
    """Returns the tables."""
    parts = [*_head(about), "", _cases(summary), "", _LEGEND]
    if summary.limited:
        parts.append(_LIMITED_NOTE)
    parts += _notes(summary)
    parts += [
        "",
        aligned(_TARGET_HEADINGS, [_target_row(each, summary) for each in summary.wanted], num_left=2),
    ]
    parts += ["", TRITON_NOTE, ""]
    if measured.no_envoy:
        parts += [f"The rows of the envoy front were left out: {measured.no_envoy}.", ""]
    parts += _cuda(measured.cuda)
    return "\n".join(parts) + "\n"


def _head(about: About) -> list[str]:
    plan, machine = about.plan, about.machine
    versions = ", ".join(f"{key} {value}" for key, value in machine.items() if key not in ("cpu", "cores"))
    rounds = f"{plan.num_rounds} rounds" if plan.num_rounds > 1 else "one round"
    return [
        f"{machine['cpu']}, {machine['cores']} cores ({about.pinning}); {about.date}.",
        f"{versions}.",
        f"Medians of {rounds}, {plan.lengths.seconds:g} s a case.",
    ]


def _cases(summary: Summary) -> str:
    rows = [_row(name, label, summary) for name, label in labels().items() if name in summary.cases]
    return aligned(("case", *(heading for heading, _, _ in _COLUMNS)), rows)


def _row(name: str, label: str, summary: Summary) -> tuple[str, ...]:
    figures = summary.cases[name]
    mark = f" {_LIMITED}" if name in summary.limited else ""
    cells = (show(figures[key].median) if key in figures else "" for _, key, show in _COLUMNS)
    return (label + mark, *cells)


def _notes(summary: Summary) -> list[str]:
    """Returns what no column shows, a line each."""
    notes: dict[str, Callable[[dict[str, float]], str]] = {
        "overload": lambda case: (
            f"5 times the peak: {case['asked_steps_per_second']:,.0f} steps/s were to be offered, "
            f"{case['sent_steps_per_second']:,.0f} sent, {case['steps_per_second']:,.0f} answered; "
            f"{case['num_refused']:,.0f} frames refused."
        ),
        "primed_4": lambda case: (
            "Beside the single steps 8 clients primed "
            f"{case['server_steps_per_second'] - case['steps_per_second']:,.0f} steps/s."
        ),
        RESIDENT: lambda case: (
            f"{case['num_sessions']:,.0f} resident sessions took {number(case['open_us'])} µs each to open."
        ),
    }
    return [note(_medians(summary.cases[name])) for name, note in notes.items() if name in summary.cases]


def _medians(figures: dict[str, Spread]) -> dict[str, float]:
    return {key: each.median for key, each in figures.items()}


def _target_row(target: Target, summary: Summary) -> tuple[str, ...]:
    found = summary.targets.get(target.name)
    values = (found.median, found.least, found.most) if found is not None else ()
    shown = [with_unit(value, target) for value in values] or [""] * 3
    goals = (goal(target, target.goal), goal(target, target.stretch))
    return (target.label, str(summary.outcome(target)), *shown, *goals)


def with_unit(value: float, target: Target) -> str:
    """Returns a target's figure with its unit."""
    return f"{number(value)} {target.unit}".rstrip()


def goal(target: Target, value: float | None) -> str:
    """Returns a goal with "≥" or "≤" and its unit, "" for no goal."""
    if value is None:
        return ""
    return f"{'≥' if target.at_least else '≤'} {value:g} {target.unit}".rstrip()


def _target_json(target: Target, summary: Summary) -> dict[str, Any]:
    found, result = summary.targets.get(target.name), summary.outcome(target)
    return {
        "name": target.name,
        "what": target.label,
        "unit": target.unit,
        "at_least": target.at_least,
        "target": target.goal,
        "stretch": target.stretch,
        "figure": dataclasses.asdict(found) if found is not None else None,
        "outcome": str(result),
        "is_met": result.is_met,
    }


def _plain(cases: dict[str, dict[str, Spread]]) -> dict[str, Any]:
    return {
        name: {key: dataclasses.asdict(each) for key, each in figures.items()}
        for name, figures in cases.items()
    }


def _cuda(cuda: dict[str, Any]) -> list[str]:
    """Returns the GPU's figures, or one line that says why there are none."""
    if "skipped" in cuda:
        return [f"CUDA rows were skipped: {cuda['skipped']}."]
    rows = [_cuda_row(each) for each in cuda["batches"]]
    headings = ("steps in a call", "steps/s", "p50 µs", "p99 µs", "floor µs", "p50 / floor")
    bandwidth = cuda["copy_bytes_per_second"] / 1e9
    what = (
        f"{cuda['device']}; the floor moves state rows in and out and weights once, at {bandwidth:,.0f} GB/s."
    )
    return [what, "", aligned(headings, rows)]


def _cuda_row(figures: dict[str, float]) -> tuple[str, ...]:
    p50, p99, floor = (figures[key] * 1e6 for key in ("p50_seconds", "p99_seconds", "floor_seconds"))
    rates = (f"{figures['batch']:,.0f}", f"{figures['steps_per_second']:,.0f}")
    return (*rates, number(p50), number(p99), number(floor), number(p50 / floor))
