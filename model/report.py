"""Owns the report that a person looks at after training: report.md, three plots and figures.json.

Knows nothing of how the figures came about. Plots are drawn without a display.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from model.artifact import write_atomically
from model.datasets import Series
from model.evaluate import Outlook
from model.manifest import Manifest

_COLOURS = {"model": "#1f5fa8", "persistence": "#c46a1b", "seasonal_naive": "#5a8f3c", "actual": "#222222"}
_MAX_PLOTTED_ROWS = 336
_PART_NAMES = {
    "validation": "the validation part, by the network that did not learn from it",
    "unseen": "rows after those learnt from, by the artifact",
}


def write_report(
    folder: Path,
    manifest: Manifest,
    history: Sequence[dict[str, Any]],
    outlooks: dict[str, Outlook],
    judged: dict[str, dict[str, Any]],
    series: Series,
) -> None:
    """Writes report.md, loss.png, forecast.png, horizons.png and figures.json into the folder."""
    part = "unseen" if "unseen" in outlooks else "validation"
    start = manifest.training["split"]["rows"][0]
    _save(loss_plot(history, manifest.training["best_epoch"]), folder / "loss.png")
    _save(forecast_plot(outlooks[part], series.rows(start, len(series)), manifest), folder / "forecast.png")
    _save(horizon_plot(outlooks[part]), folder / "horizons.png")
    content = {"figures": judged, "history": history}
    write_atomically(folder / "figures.json", (json.dumps(content, indent=1) + "\n").encode())
    write_atomically(folder / "report.md", report_text(manifest, judged, outlooks, part).encode())


def report_text(
    manifest: Manifest, judged: dict[str, dict[str, Any]], outlooks: dict[str, Outlook], part: str
) -> str:
    """Writes the report in Markdown."""
    training = manifest.training
    split = training["split"]
    lines = [f"# {manifest.name}, version {manifest.version}", "", manifest.description, ""]
    lines += [f"Data: {manifest.attribution}", ""] if manifest.attribution else []
    lines += ["Made by", "", f"    {training['command']}", ""]
    num_rows = split["rows"][1] - split["rows"][0]
    refit = f", then fitted anew on all {num_rows:,} rows for as many epochs" if split["refit"] else ""
    lines += [
        f"Learnt from rows {split['rows'][0]:,} to {split['rows'][1] - 1:,}, of which the last "
        f"{split['validation_rows']:,} judged; the best epoch was {training['best_epoch']}{refit}.",
        "",
        "altMAPE is the mean absolute error divided by the mean absolute value.",
        "",
    ]
    for key, table in judged.items():
        lines += [
            f"## Figures on {_PART_NAMES[key]}",
            "",
            f"{table['rows']:,} rows; season {outlooks[key].period} rows.",
            "",
        ]
        lines += [*_markdown_table(table), ""]
    plotted = _PART_NAMES[part]
    lines += ["## Plots", "", f"On {plotted}:", "", "![Error per horizon](horizons.png)", ""]
    lines += ["![Predicted against actual](forecast.png)", "", "![Loss per epoch](loss.png)", ""]
    return "\n".join(lines)


def _markdown_table(table: dict[str, Any]) -> list[str]:
    lines = ["| steps ahead | forecast | MAE | RMSE | altMAPE |", "|---:|---|---:|---:|---:|"]
    for horizon, rivals in table["horizons"].items():
        for name, row in rivals.items():
            share = "" if row["altmape"] is None else f"{row['altmape']:.4f}"
            cells = (horizon, name.replace("_", " "), f"{row['mae']:,.5g}", f"{row['rmse']:,.5g}", share)
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def loss_plot(history: Sequence[dict[str, Any]], best_epoch: int) -> Figure:
    """Plots the loss of each epoch, and marks the one chosen."""
    figure, axes = _canvas(3.6)
    search = [epoch for epoch in history if epoch["phase"] == "search"]
    refit = [epoch for epoch in history if epoch["phase"] == "refit"]
    numbers = [epoch["number"] for epoch in search]
    axes.plot(
        numbers, [epoch["training_loss"] for epoch in search], color=_COLOURS["model"], label="training"
    )
    axes.plot(
        numbers,
        [epoch["validation_loss"] for epoch in search],
        color=_COLOURS["persistence"],
        label="validation",
    )
    if refit:
        axes.plot(
            [epoch["number"] for epoch in refit],
            [epoch["training_loss"] for epoch in refit],
            color=_COLOURS["model"],
            linestyle=":",
            label="training, refit on all rows",
        )
    axes.axvline(
        best_epoch, color="#888888", linewidth=0.8, linestyle="--", label=f"best epoch, {best_epoch}"
    )
    axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel="weighted error, scaled (log)", title="Loss per epoch")
    axes.yaxis.set_minor_formatter("{x:.2g}")
    axes.legend(frameon=False)
    return figure


def forecast_plot(outlook: Outlook, series: Series, manifest: Manifest) -> Figure:
    """Plots the first judged rows beside forecasts made one step and farther before, first output column."""
    figure, axes = _canvas(4.2)
    farthest = outlook.predicted.shape[1]
    _, targets = outlook.pairs(farthest)
    shown = targets[: min(len(targets), _MAX_PLOTTED_ROWS)]
    when = series.times_ns[shown].astype("datetime64[ns]") if series.calendar else shown
    axes.plot(when, outlook.actual[shown, 0], color=_COLOURS["actual"], linewidth=1.6, label="actual")
    for horizon, colour in ((1, _COLOURS["model"]), (farthest, _COLOURS["persistence"])):
        rows = shown - horizon - outlook.origins[0]
        steps = "step" if horizon == 1 else "steps"
        axes.plot(
            when,
            outlook.predicted[rows, horizon - 1, 0],
            color=colour,
            linewidth=1.0,
            label=f"{horizon} {steps} ahead",
        )
    output = manifest.outputs[0]
    axes.set_ylabel(f"{output.name} [{output.unit}]" if output.unit else output.name)
    axes.set_title(f"Predicted against actual, {len(shown)} rows that were not learnt from")
    if series.calendar:
        locator = AutoDateLocator()  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    else:
        axes.set_xlabel("row")
    axes.margins(x=0.01)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    return figure


def horizon_plot(outlook: Outlook) -> Figure:
    """Plots the error at every horizon beside the simple forecasts."""
    figure, axes = _canvas(3.6)
    horizons = np.arange(1, outlook.predicted.shape[1] + 1)
    rows = [outlook.at(int(horizon)) for horizon in horizons]
    for name in ("persistence", "seasonal_naive", "model"):
        axes.plot(
            horizons,
            [row[name]["altmape"] or np.nan for row in rows],
            color=_COLOURS[name],
            linewidth=2.0 if name == "model" else 1.2,
            label=name.replace("_", " "),
        )
    axes.set(xlabel="steps ahead", ylabel="altMAPE", title="Error per horizon")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _canvas(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.0, height_inches), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
