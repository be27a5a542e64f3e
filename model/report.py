"""Owns the report that a person reads after training: report.md, three plots and figures.json.

Knows nothing of how the figures were computed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from model.backtest import Backtest
from model.datasets import Series
from model.files import write_atomically
from model.manifest import Manifest
from model.plots import canvas, save

_COLOURS = {
    "model": "#1f5fa8",
    "persistence": "#c46a1b",
    "seasonal_naive": "#5a8f3c",
    "ridge": "#8a4f9e",
    "actual": "#222222",
}
_MAX_PLOTTED_ROWS = 336
_PART_NAMES = {
    "validation": "the validation part, forecast by a network that was not fitted to it",
    "unseen": "the rows after the training rows, forecast by the artifact",
}


def write_report(
    folder: Path,
    manifest: Manifest,
    *,
    history: Sequence[dict[str, Any]],
    backtests: dict[str, Backtest],
    figures: dict[str, dict[str, Any]],
    series: Series,
) -> None:
    """Writes report.md, loss.png, forecast.png, horizons.png and figures.json into the folder.

    backtests and figures have an entry for each part of the series: `validation`, and `unseen` where rows
    follow the training rows.
    """
    part = "unseen" if "unseen" in backtests else "validation"
    start = manifest.training["split"]["rows"][0]
    save(loss_plot(history, manifest.training["best_epoch"]), folder / "loss.png")
    save(forecast_plot(backtests[part], series.rows(start, len(series)), manifest), folder / "forecast.png")
    save(horizon_plot(backtests[part]), folder / "horizons.png")
    content = {"figures": figures, "history": history}
    write_atomically(folder / "figures.json", (json.dumps(content, indent=1) + "\n").encode())
    write_atomically(folder / "report.md", report_text(manifest, figures, backtests, plotted=part).encode())


def report_text(
    manifest: Manifest, figures: dict[str, dict[str, Any]], backtests: dict[str, Backtest], *, plotted: str
) -> str:
    """Returns the report in Markdown; `plotted` is the part of the series that the plots show."""
    lines = [f"# {manifest.name}, version {manifest.version}", "", manifest.description, ""]
    lines += [f"Data: {manifest.attribution}", ""] if manifest.attribution else []
    lines += ["Made by", "", f"    {manifest.training['command']}", "", _how_trained(manifest.training), ""]
    lines += [
        "MAE is the mean absolute error, RMSE the root of the mean squared error, and altMAPE the MAE divided"
        " by the mean absolute value.",
        "",
    ]
    for part, table in figures.items():
        season = f"the season of the seasonal naive forecast is {backtests[part].period} rows"
        lines += [f"## Figures on {_PART_NAMES[part]}", "", f"{table['rows']:,} rows; {season}.", ""]
        lines += [*_markdown_table(table), ""]
    lines += ["## Plots", "", f"On {_PART_NAMES[plotted]}:", "", "![Error per horizon](horizons.png)", ""]
    lines += ["![Predicted against actual](forecast.png)", "", "![Loss per epoch](loss.png)", ""]
    return "\n".join(lines)


def _how_trained(training: Mapping[str, Any]) -> str:
    split = training["split"]
    start, stop = split["rows"]
    validation = stop - split["validation_rows"]
    search = (
        f"The network was fitted to rows {start:,} to {validation - 1:,}. On the validation part, rows"
        f" {validation:,} to {stop - 1:,}, the loss was lowest in epoch {training['best_epoch']}."
    )
    refit = f" A fresh network was then fitted to rows {start:,} to {stop - 1:,} for as many epochs."
    return search + (refit if split["refit"] else "")


def _markdown_table(table: dict[str, Any]) -> list[str]:
    lines = ["| steps ahead | forecast | MAE | RMSE | altMAPE |", "|---:|---|---:|---:|---:|"]
    for horizon, forecasts in table["horizons"].items():
        for name, row in forecasts.items():
            altmape = "" if row["altmape"] is None else f"{row['altmape']:.4f}"
            cells = (horizon, name.replace("_", " "), f"{row['mae']:,.5g}", f"{row['rmse']:,.5g}", altmape)
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def loss_plot(history: Sequence[dict[str, Any]], best_epoch: int) -> Figure:
    """Plots the loss of each epoch and marks the best epoch."""
    figure, axes = canvas(3.6)
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


def forecast_plot(backtest: Backtest, series: Series, manifest: Manifest) -> Figure:
    """Plots the first output beside its forecasts of one step and of the farthest horizon."""
    figure, axes = canvas(4.2)
    farthest = backtest.predicted.shape[1]
    _, targets = backtest.forecasts_of(farthest)
    shown = targets[: min(len(targets), _MAX_PLOTTED_ROWS)]
    when = series.times_ns[shown].astype("datetime64[ns]") if series.calendar else shown
    axes.plot(when, backtest.actual[shown, 0], color=_COLOURS["actual"], linewidth=1.6, label="actual")
    for horizon, colour in ((1, _COLOURS["model"]), (farthest, _COLOURS["persistence"])):
        rows = shown - horizon - backtest.origins[0]
        steps = "step" if horizon == 1 else "steps"
        axes.plot(
            when,
            backtest.predicted[rows, horizon - 1, 0],
            color=colour,
            linewidth=1.0,
            label=f"{horizon} {steps} ahead",
        )
    output = manifest.outputs[0]
    axes.set_ylabel(f"{output.name} [{output.unit}]" if output.unit else output.name)
    axes.set_title(f"Predicted against actual, {len(shown)} rows that the network was not fitted to")
    if series.calendar:
        locator = AutoDateLocator()  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    else:
        axes.set_xlabel("row")
    axes.margins(x=0.01)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    return figure


def horizon_plot(backtest: Backtest) -> Figure:
    """Plots the error at every horizon beside those of the simple forecasts."""
    figure, axes = canvas(3.6)
    horizons = np.arange(1, backtest.predicted.shape[1] + 1)
    rows = [backtest.figures_at(int(horizon)) for horizon in horizons]
    for name in ("persistence", "seasonal_naive", "ridge", "model"):
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
