"""Owns how every plot looks and how it is written. Plots are drawn without a display.

Knows nothing of what a plot shows.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def canvas(height_inches: float) -> tuple[Figure, Axes]:
    """Returns a figure with one panel."""
    figure = Figure(figsize=(8.0, height_inches), layout="constrained")
    axes = figure.add_subplot()
    tidy(axes)
    return figure, axes


def tidy(axes: Axes) -> None:
    """Takes what says nothing out of a panel, and draws lines across behind the rest."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path) -> None:
    """Writes a plot, and makes its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
