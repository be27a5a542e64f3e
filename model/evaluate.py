"""Owns the `evaluate` command: an honest comparison of an artifact with simple forecasts on one series.

Knows nothing of training. A forecast made after row t is compared with rows t + 1 and on; the state is
carried through all rows from the first, as a session of the service would carry it.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.artifact import Artifact, load_artifact, write_atomically
from model.baselines import Floats, choose_period, figures, persistence, seasonal_naive
from model.datasets import Series
from model.errors import OptionError
from model.options import add_source_arguments, parse_horizons, read_source

Figures = dict[str, float | None]
_PRIME_STEPS = 512
_FORECAST_ROWS = 512


@dataclass(frozen=True)
class Outlook:
    """Holds a stream's forecasts: predicted[i, h − 1] was made after row origins[i] for h rows later."""

    predicted: Floats
    """(origins, H, O)."""
    origins: NDArray[np.int64]
    """(origins), consecutive rows."""
    actual: Floats
    """(N, O): the whole series, the columns that are predicted."""
    from_row: int
    period: int
    """The season of the seasonal naive forecast, in rows, chosen from the rows before `from_row`."""

    def at(self, horizon: int) -> dict[str, Figures]:
        """Compares model, persistence and seasonal naive at one horizon, over the same target rows."""
        predicted, targets = self.pairs(horizon)
        actual = self.actual[targets]
        return {
            "model": figures(predicted, actual),
            "persistence": figures(persistence(self.actual, targets, horizon), actual),
            "seasonal_naive": figures(seasonal_naive(self.actual, targets, horizon, self.period), actual),
        }

    def pairs(self, horizon: int) -> tuple[Floats, NDArray[np.int64]]:
        """Returns the forecasts `horizon` steps ahead (n, O) and their target rows (n)."""
        targets = np.arange(self.from_row, len(self.actual))
        return self.predicted[targets - horizon - self.origins[0], horizon - 1], targets

    def table(self, horizons: list[int]) -> dict[str, Any]:
        """Compares at several horizons, in the form of the command's JSON."""
        return {
            "rows": len(self.actual) - self.from_row,
            "horizons": {str(horizon): self.at(horizon) for horizon in horizons},
        }


def look_ahead(artifact: Artifact, series: Series, from_row: int, horizon: int) -> Outlook:
    """Streams the series through the artifact and forecasts up to `horizon` steps after each row.

    The rows before `from_row` prime the state and choose the season; only forecasts of later rows are judged.
    """
    if not 1 <= from_row < len(series):
        raise OptionError(f"row {from_row} is not within rows 1 to {len(series) - 1} of the series")
    period = choose_period(series.rows(0, from_row))
    _require_history(from_row, horizon, period)
    first = max(0, from_row - horizon)
    x, time = torch.from_numpy(series.values.copy()), torch.from_numpy(series.times_ns.copy())
    if not artifact.manifest.uses_time:
        time = torch.zeros_like(time)
    with torch.inference_mode():
        states = _states(artifact, x, time, first)
        predicted = _forecasts(artifact, states, time[first:-1], horizon)
    names = [column.name for column in artifact.manifest.inputs]
    judged = [names.index(output.target) for output in artifact.manifest.outputs]
    origins = np.arange(first, len(series) - 1)
    return Outlook(predicted, origins, series.values[:, judged], from_row, period)


def _require_history(from_row: int, horizon: int, period: int) -> None:
    needed = period * -(-horizon // period)
    if from_row < needed:
        raise OptionError(
            f"horizon {horizon} needs {needed} rows before the first judged; there are {from_row}"
        )


def _states(artifact: Artifact, x: Tensor, time: Tensor, first: int) -> Tensor:
    """Returns the state after each row from `first` to the last but one, (rows, S)."""
    state = artifact.zero_state(1)
    for begin in range(0, first, _PRIME_STEPS):
        end = min(begin + _PRIME_STEPS, first)
        _, state = artifact.script.scan(
            x[None, begin:end], time[None, begin:end], torch.tensor([end - begin]), state
        )
    states = torch.empty(len(x) - 1 - first, state.size(1))
    for row in range(first, len(x) - 1):
        _, state = artifact.script.step(x[row : row + 1], time[row : row + 1], state)
        states[row - first] = state[0]
    return states


def _forecasts(artifact: Artifact, states: Tensor, time: Tensor, horizon: int) -> Floats:
    pieces = []
    for begin in range(0, len(states), _FORECAST_ROWS):
        piece, times = states[begin : begin + _FORECAST_ROWS], time[begin : begin + _FORECAST_ROWS]
        pieces.append(artifact.script.forecast(piece, times, horizon, torch.zeros(len(piece), horizon, 0)))
    return torch.cat(pieces).numpy()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("--artifact", type=Path, required=True, help="the artifact, model.pt")
    add_source_arguments(parser)
    parser.add_argument(
        "--horizons", default="1,5,48", help="steps ahead, separated by commas (default 1,5,48)"
    )
    parser.add_argument(
        "--from-row", type=int, help="judge rows from this one on; earlier ones prime (default: half)"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")


def run(options: argparse.Namespace) -> str:
    """Returns the comparison as a table, and writes it as JSON where asked to."""
    horizons = parse_horizons(options.horizons)
    artifact = load_artifact(options.artifact)
    _require_usable(artifact)
    series, _ = read_source(options, [column.name for column in artifact.manifest.inputs])
    interval, expected = series.interval_ns / 1e9, artifact.manifest.step_interval_seconds
    if interval and expected and interval != expected:
        raise OptionError(
            f"the rows are {interval:g} s apart, but {artifact.manifest.name} steps every {expected:g} s"
        )
    from_row = len(series) // 2 if options.from_row is None else options.from_row
    outlook = look_ahead(artifact, series, from_row, horizons[-1])
    table = outlook.table(horizons)
    if options.json is not None:
        write_atomically(options.json, (json.dumps(table, indent=2) + "\n").encode())
    return as_text(table, outlook.period)


def _require_usable(artifact: Artifact) -> None:
    names = [column.name for column in artifact.manifest.inputs]
    unknown = [output.target for output in artifact.manifest.outputs if output.target not in names]
    if unknown:
        raise OptionError(f"output target {unknown[0]!r} is no input, so the series does not hold what came")
    if artifact.manifest.future:
        raise OptionError(
            f"the artifact wants future input {artifact.manifest.future[0].name!r}, which no option gives"
        )


def as_text(table: dict[str, Any], period: int) -> str:
    """Sets the comparison out as a table, one line per horizon and forecast."""
    lines = [f"{table['rows']} rows, season {period} rows", ""]
    lines.append(f"{'horizon':>7}  {'forecast':<16}{'MAE':>14}{'RMSE':>14}{'altMAPE':>10}")
    for horizon, rivals in table["horizons"].items():
        for name, row in rivals.items():
            share = "-" if row["altmape"] is None else f"{row['altmape']:.4f}"
            lines.append(
                f"{horizon:>7}  {name.replace('_', ' '):<16}"
                f"{row['mae']:>14,.5g}{row['rmse']:>14,.5g}{share:>10}"
            )
    return "\n".join(lines)
