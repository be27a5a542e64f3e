"""Owns the plots of how long cells remember: learning curves, and the gradient k steps back.

Knows nothing of how they were measured.
"""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from model.memory_runs import Run
from model.memory_tasks import Task
from model.plots import canvas, tidy

_COLOURS = {"elman": "#c46a1b", "lstm": "#1f5fa8", "peephole": "#8a4f9e", "gru": "#5a8f3c"}
_STYLES = {"peephole": "--"}  # it begins as the LSTM does, and lies on its line
_LEAST_NORM = 1e-12  # below, a line ends


def learning_plot(task: Task, runs: Sequence[Run]) -> Figure:
    """Plots the error after each update, one panel for each length; a dot marks where a task was solved."""
    lengths = list(dict.fromkeys(run.num_steps for run in runs))
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    for axes, length in zip(panels, lengths, strict=True):
        tidy(axes)
        axes.axhline(task.guess, color="#888888", linewidth=0.8, linestyle="--", label="guessing")
        for run in (each for each in runs if each.num_steps == length):
            axes.plot(run.updates, run.errors, color=_COLOURS[run.cell], label=run.cell)
            if run.solved_after is not None:
                axes.plot(run.solved_after, run.errors[-1], "o", color=_COLOURS[run.cell])
        axes.set(xlabel="updates", title=f"{length} steps")
    panels[0].set_ylabel(task.measure)
    panels[0].set_ylim(bottom=0)
    figure.suptitle(task.title.capitalize())
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def gradient_plot(gradients: dict[str, list[float]]) -> Figure:
    """Plots the gradient's norm over the steps back, on a logarithmic axis."""
    figure, axes = canvas(3.6)
    for cell, norms in gradients.items():
        shown = [each if each >= _LEAST_NORM else math.nan for each in norms]
        axes.plot(range(len(norms)), shown, _STYLES.get(cell, "-"), color=_COLOURS[cell], label=cell)
    axes.set_yscale("log")
    axes.set_ylim(bottom=_LEAST_NORM)
    axes.set(xlabel="steps back, k", ylabel="share of the norm at k = 0 (log)")
    axes.set_title("The gradient k steps back")
    axes.legend(frameon=False)
    return figure
