"""The result of a benchmark as one picture: rate, cost and latency of each case, then the targets."""

import pathlib
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.cases import ENVOY_CASES, FLOORS, GROUPS, labels
from bench.figures import Spread, Summary
from bench.report import About, goal, with_unit
from bench.targets import Outcome, Target, strain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FLOOR, _SERVICE, _ENVOY = "#b4bac4", "#2a6fbb", "#8a4fb0"
_INK, _FAINT, _GRID = "#2b3038", "#7a818c", "#e4e7ec"
_MET, _MISSED = "#2e8b57", "#c4552d"
_GAP = 0.55  # between groups, in rows
_LEAST_STRAIN, _MOST_STRAIN = 0.02, 1000.0
_NUMBER_GAP = 7  # from a mark to its number, in points


def save(path: pathlib.Path, about: About, summary: Summary) -> None:
    """Draws the summary into a PNG file."""
    rows = _positions(summary)
    heights = (0.27 * max(rows.values()) + 1.0, 0.3 * len(summary.wanted) + 0.6)  # inches
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.12)  # inches
    figure = Figure(figsize=(14, sum(heights) + 0.8), dpi=130, layout=layout)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 3, width_ratios=(1, 1, 1.05), height_ratios=heights)
    left = figure.add_subplot(grid[0, 0])
    middle, right = (figure.add_subplot(grid[0, column], sharey=left) for column in (1, 2))
    _bars(left, rows, summary, key="steps_per_second", title="steps a second", number_format="{:,.0f}")
    _bars(
        middle, rows, summary, key="cpu_us_per_step", title="server CPU a step, µs", number_format="{:,.1f}"
    )
    _latencies(right, rows, summary)
    left.set_yticks(list(rows.values()), [labels()[name] for name in rows])
    for label, name in zip(left.get_yticklabels(), rows, strict=True):
        label.set_color(_FAINT if name in FLOORS else _INK)
    left.set_ylim(max(rows.values()) + 0.6, -0.6)
    for axes in (middle, right):
        axes.tick_params(axis="y", labelleft=False)
    _targets(figure.add_subplot(grid[1, :]), summary)
    figure.suptitle(_title(about), fontsize=10, color=_INK, x=0.01, ha="left", linespacing=1.6)
    figure.savefig(path)


def _title(about: About) -> str:
    machine = about.machine
    where = f"{machine['cpu']}, {machine['cores']} cores, {about.date}"
    what = (
        "Streamcell (blue; in Envoy: violet) beside its floors (grey): LSTM, 8 inputs, 128 hidden, one core"
    )
    rounds = about.plan.num_rounds
    how = f"median of {rounds} rounds, lines from least to most" if rounds > 1 else "one round"
    return f"{what}   ·   {where}   ·   {how}"


def _positions(summary: Summary) -> dict[str, float]:
    """Returns the vertical position of each measured case, with gaps between the groups."""
    positions, at = {}, 0.0
    for group in GROUPS:
        for name in group:
            if name in summary.cases:
                positions[name] = at
                at += 1
        at += _GAP
    return positions


def _bars(
    axes: "Axes", rows: dict[str, float], summary: Summary, *, key: str, title: str, number_format: str
) -> None:
    measured = {name: summary.cases[name][key] for name in rows if key in summary.cases[name]}
    found = {name: each for name, each in measured.items() if each.least > 0}  # the axis is logarithmic
    medians = [each.median for each in found.values()]
    _style(axes, title)
    axes.barh([rows[name] for name in found], medians, color=_colours(found), height=0.7, zorder=2)
    for name, each in found.items():
        row = rows[name]
        axes.plot([each.least, each.most], [row, row], color=_INK, linewidth=1, zorder=3)
        _number(axes, each.most, row, text=number_format.format(each.median), colour=_INK)
    axes.set_xlim(min(medians) / 2.5, max(each.most for each in found.values()) * 5)  # space for the numbers


def _latencies(axes: "Axes", rows: dict[str, float], summary: Summary) -> None:
    _style(axes, "latency of a message, ms: ● p50   ○ p99   | p99.9")
    largest = 0.0
    for (name, row), colour in zip(rows.items(), _colours(rows), strict=True):
        keys = ("p50_seconds", "p99_seconds", "p99_9_seconds")
        found = [ms for key in keys if (ms := _ms(summary.cases[name].get(key))) is not None]
        if len(found) < 2:
            continue
        axes.plot([found[0], found[-1]], [row, row], color=colour, linewidth=1.8, zorder=2)
        for value, marker, fill in zip(found, "oo|", (colour, "white", colour), strict=False):
            axes.plot([value], [row], marker, color=colour, markerfacecolor=fill, markersize=6, zorder=3)
        text = " – ".join(_short(value) for value in found)
        _number(axes, found[-1], row, text=text, colour=_INK)
        largest = max(largest, found[-1])
    axes.set_xlim(axes.get_xlim()[0], largest * 60)


def _targets(axes: "Axes", summary: Summary) -> None:
    _style(axes, "targets: the figure as a multiple of its goal; right of 1 it is missed   ( | stretch )")
    wanted = summary.wanted
    for row, target in enumerate(wanted):
        if (found := summary.targets.get(target.name)) is not None:
            _target(axes, row, target, found=found, result=summary.outcome(target))
        if target.stretch is not None:
            axes.plot([_position(target, target.stretch)], [row], "|", color=_INK, markersize=9, zorder=4)
    axes.axvline(1.0, color=_INK, linewidth=1, zorder=1)
    axes.set_yticks(range(len(wanted)), [target.label for target in wanted])
    axes.set_ylim(len(wanted) - 0.4, -0.6)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.1), max(high, 2.0) * 3)


def _target(axes: "Axes", row: int, target: Target, *, found: Spread, result: Outcome) -> None:
    colour = _MET if result.is_met else _MISSED
    ends = [_position(target, found.least), _position(target, found.most)]
    axes.plot(ends, [row, row], color=colour, linewidth=2, alpha=0.5, zorder=2)
    axes.plot([_position(target, found.median)], [row], "o", color=colour, markersize=7, zorder=3)
    shown = f"{with_unit(found.median, target)}  ({goal(target, target.goal)}): {result}"
    _number(axes, max(*ends, 1.0), row, text=shown, colour=colour)


def _position(target: Target, value: float) -> float:
    """Returns the position of a figure on the targets' axis. Figures beyond the axis stand at its end."""
    return min(max(strain(target, value), _LEAST_STRAIN), _MOST_STRAIN)


def _number(axes: "Axes", x: float, row: float, *, text: str, colour: str) -> None:
    """Writes the figure of a mark to the right of it."""
    axes.annotate(
        text, (x, row), (_NUMBER_GAP, 0), textcoords="offset points", va="center", fontsize=8, color=colour
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ms(spread: Spread | None) -> float | None:
    return spread.median * 1e3 if spread is not None else None


def _colours(names: dict[str, Any]) -> list[str]:
    return [_colour(name) for name in names]


def _colour(name: str) -> str:
    if name in FLOORS:
        return _FLOOR
    return _ENVOY if name in ENVOY_CASES else _SERVICE


def _style(axes: "Axes", title: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, fontsize=10, color=_INK, loc="left")
    axes.grid(visible=True, axis="x", color=_GRID, linewidth=0.8, zorder=0)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.tick_params(axis="x", which="both", length=0, labelsize=8, colors=_FAINT)
    spines: dict[str, Any] = dict(axes.spines)
    for spine in spines.values():
        spine.set_visible(False)
