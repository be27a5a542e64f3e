"""Owns the backtest: the forecasts that an artifact makes along one series, compared with simple forecasts.

Knows nothing of training, or of how the figures are shown.

The origin of the forecasts rolls over the series (rolling-origin evaluation: Tashman 2000, "Out-of-sample
tests of forecasting accuracy"). A forecast made after row t is compared with the rows t + 1 and on. The
state is carried through all rows from the first, as a session of the service carries it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.artifact import Artifact
from model.baselines import Floats, choose_period, figures, persistence, seasonal_lag, seasonal_naive
from model.datasets import Series
from model.errors import OptionError
from model.linear_forecasts import online, ridge

Figures = dict[str, float | None]
_PRIME_STEPS = 512
"""Time steps in one `scan`, at most."""
_FORECAST_ROWS = 512
"""Rows in one `forecast`, at most."""


@dataclass(frozen=True, kw_only=True)
class Backtest:
    """Holds forecasts along a series: predicted[i, h − 1] was made after row origins[i] for h rows later."""

    predicted: Floats
    """(origins, H, O)."""
    origins: NDArray[np.int64]
    """(origins), consecutive rows."""
    actual: Floats
    """(N, O): the whole series, the columns that are predicted."""
    from_row: int
    """The first row whose forecasts count."""
    period: int
    """The season of the seasonal naive forecast, in rows, chosen from the rows before `from_row`."""
    ridge: Floats
    """(origins, H, O): the forecasts by ridge regression, fitted to the rows before `from_row`."""

    def forecasts_of(self, horizon: int) -> tuple[Floats, NDArray[np.int64]]:
        """Returns the forecasts made `horizon` steps before their target rows, (n, O), and these rows (n)."""
        targets = np.arange(self.from_row, len(self.actual))
        return self._made_before(targets, horizon, self.predicted), targets

    def figures_at(self, horizon: int) -> dict[str, Figures]:
        """Compares model, persistence, seasonal naive and ridge at one horizon, over the same target rows."""
        predicted, targets = self.forecasts_of(horizon)
        found = {
            "model": predicted,
            "persistence": persistence(self.actual, targets, horizon),
            "seasonal_naive": seasonal_naive(self.actual, targets, horizon, period=self.period),
            "ridge": self._made_before(targets, horizon, self.ridge),
        }
        return {name: figures(each, self.actual[targets]) for name, each in found.items()}

    def table(self, horizons: list[int]) -> dict[str, Any]:
        """Compares at several horizons, with online least squares too, as plain values for JSON."""
        return {
            "rows": len(self.actual) - self.from_row,
            "horizons": {
                str(horizon): {**self.figures_at(horizon), "online_least_squares": self._online(horizon)}
                for horizon in horizons
            },
        }

    def _made_before(self, targets: NDArray[np.int64], horizon: int, forecasts: Floats) -> Floats:
        made: Floats = forecasts[targets - horizon - self.origins[0], horizon - 1]
        return made

    def _online(self, horizon: int) -> Figures:
        targets = np.arange(self.from_row, len(self.actual))
        found = online(self.actual, targets, horizon=horizon, num_fitted=self.from_row, period=self.period)
        return figures(found, self.actual[targets])


def run_backtest(artifact: Artifact, series: Series, *, from_row: int, horizon: int) -> Backtest:
    """Streams the series through the artifact and forecasts up to `horizon` steps after each row.

    The rows before `from_row` prime the state and choose the season; only forecasts of `from_row` and later
    rows count. OptionError where the rows are too few.
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
    targets = [names.index(output.target) for output in artifact.manifest.outputs]
    actual, origins = series.values[:, targets], np.arange(first, len(series) - 1)
    return Backtest(
        predicted=predicted,
        origins=origins,
        actual=actual,
        from_row=from_row,
        period=period,
        ridge=ridge(actual, origins, num_fitted=from_row, period=period, horizon=horizon),
    )


def _require_history(from_row: int, horizon: int, period: int) -> None:
    needed = seasonal_lag(period, horizon)
    if from_row < needed:
        raise OptionError(
            f"horizon {horizon} needs {needed} rows before the first judged row; there are {from_row}"
        )


def _states(artifact: Artifact, x: Tensor, time: Tensor, first: int) -> Tensor:
    """Returns the state after each row, from row `first` to the last but one: (rows, S)."""
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
    """Returns the forecasts from states (rows, S) after the time (rows) of their last steps: (rows, H, O)."""
    pieces = []
    for begin in range(0, len(states), _FORECAST_ROWS):
        piece, times = states[begin : begin + _FORECAST_ROWS], time[begin : begin + _FORECAST_ROWS]
        pieces.append(artifact.script.forecast(piece, times, horizon, torch.zeros(len(piece), horizon, 0)))
    return torch.cat(pieces).numpy()
