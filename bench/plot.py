"""A benchmark's outcome as one picture: rate, cost and latency of each case in the same row."""

import pathlib
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.cases import FLOORS, RATIOS, labels
from bench.figures import Spread, Summary
from bench.report import About

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FLOOR, _SERVICE, _INK, _FAINT, _GRID = "#b4bac4", "#2a6fbb", "#2b3038", "#7a818c", "#e4e7ec"
_GROUP_STARTS = ("cell_1", "stream_1", "frame_16")
_GAP = 0.55  # between groups, in rows


def save(path: pathlib.Path, about: About, summary: Summary) -> None:
    """Draws the summary into a PNG file."""
    rows = _places()
    figure = Figure(figsize=(13, 7.6), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 0.85))
    _bars(left, summary, "steps_per_second", "steps a second", "{:,.0f}")
    _bars(middle, summary, "cpu_us_per_step", "server CPU a step, µs", "{:,.1f}")
    _latencies(right, summary)
    left.set_yticks(list(rows.values()), list(labels().values()))
    for label, name in zip(left.get_yticklabels(), rows, strict=True):
        label.set_color(_FAINT if name in FLOORS else _INK)
    left.set_ylim(max(rows.values()) + 0.6, -0.6)
    figure.suptitle(_title(about, summary), fontsize=10, color=_INK, x=0.01, ha="left", linespacing=1.6)
    figure.savefig(path)


def _title(about: About, summary: Summary) -> str:
    machine = about.machine
    ratios = "   ·   ".join(f"{each.label}: {summary.ratios[each.name].median:.2f}" for each in RATIOS)
    where = f"{machine['cpu']}, {machine['cores']} cores, {about.date}"
    what = "Streamcell (blue) beside its floors (grey): LSTM, 8 inputs, 128 hidden, one core"
    how = f"median of {about.plan.num_rounds} rounds, lines from least to most"
    return f"{what}   ·   {where}   ·   {how}\n{ratios}"


def _places() -> dict[str, float]:
    """Returns where each case's row stands, with gaps between the groups."""
    places, at = {}, 0.0
    for name in labels():
        at += _GAP if name in _GROUP_STARTS else 0.0
        places[name] = at
        at += 1
    return places


def _bars(axes: "Axes", summary: Summary, key: str, title: str, form: str) -> None:
    rows = list(_places().values())
    spreads = [summary.cases[name][key] for name in labels()]
    medians = [each.median for each in spreads]
    _dress(axes, title)
    axes.barh(rows, medians, color=_colours(), height=0.7, zorder=2)
    for row, each in zip(rows, spreads, strict=True):
        axes.plot([each.least, each.most], [row, row], color=_INK, linewidth=1, zorder=3)
        axes.text(each.most * 1.12, row, form.format(each.median), va="center", fontsize=8, color=_INK)
    axes.set_xlim(min(medians) / 2.5, max(each.most for each in spreads) * 4)  # room for the last number


def _latencies(axes: "Axes", summary: Summary) -> None:
    _dress(axes, "latency of a message, ms: ● p50   ○ p99")
    for (name, row), colour in zip(_places().items(), _colours(), strict=True):
        p50, p99 = (_ms(summary.cases[name].get(key)) for key in ("p50_seconds", "p99_seconds"))
        if p50 is None or p99 is None:
            continue
        axes.plot([p50, p99], [row, row], color=colour, linewidth=2.4, zorder=2)
        axes.plot([p50], [row], "o", color=colour, markersize=6, zorder=3)
        axes.plot([p99], [row], "o", color=colour, markerfacecolor="white", markersize=6, zorder=3)
        text = f"{_short(p50)} – {_short(p99)}"
        axes.text(p99 * 1.35, row, text, va="center", fontsize=8, color=_INK)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 8)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ms(spread: Spread | None) -> float | None:
    return spread.median * 1e3 if spread is not None else None


def _colours() -> list[str]:
    return [_FLOOR if name in FLOORS else _SERVICE for name in labels()]


def _dress(axes: "Axes", title: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_title(title, fontsize=10, color=_INK, loc="left")
    axes.grid(visible=True, axis="x", color=_GRID, linewidth=0.8, zorder=0)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.tick_params(axis="x", which="both", length=0, labelsize=8, colors=_FAINT)
    spines: dict[str, Any] = dict(axes.spines)
    for spine in spines.values():
        spine.set_visible(False)
