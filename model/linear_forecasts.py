"""Owns the linear forecasts that a network must beat: ridge regression on lags, and recursive least squares.

Knows nothing of networks, and imports no torch.

Both see lags of the series alone: the newest values, and those around one season before the row to forecast.
Each column is forecast from its own lags. Values are standardised by the rows fitted.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.baselines import Floats, seasonal_lag

Doubles = NDArray[np.float64]
Rows = NDArray[np.int64]

_MAX_FITTED = 20_000
"""Rows that are fitted, at most: the last ones."""
_PIECE_ROWS = 4096
"""Rows whose lags are in memory at once."""
_NEWEST = 60
"""Lags of the newest values, at most."""
_AROUND = 12
"""Rows before and after one season ago whose values count, at most."""
_PENALTIES = tuple(10.0**power for power in range(-1, 5))
_JUDGED_SHARE = 0.2
"""The last part of the fitted rows, on which the penalty is chosen."""
_FORGETTING = 0.9995
_PRIOR = 100.0
"""The variance that each weight begins with, where values have a variance of one."""


@dataclass(frozen=True)
class Lags:
    """Names the values that a forecast made after a row sees, by how many rows before that row they stand."""

    offsets: Rows
    """(D): 0 is the row itself."""

    @classmethod
    def of(cls, *, num_fitted: int, period: int, horizon: int) -> "Lags":
        """Chooses the lags of forecasts up to `horizon` rows ahead, as far as the fitted rows allow.

        The newest values, and those around one period before each row to forecast.
        """
        most = max(1, (num_fitted - horizon) // 4)  # three quarters of the rows are left to fit
        newest = np.arange(min(_NEWEST, most))
        first, last = period + _AROUND, max(period - horizon - _AROUND, len(newest))
        seasonal = np.arange(last, first + 1) if period > 1 and first <= most else np.arange(0)
        return cls(np.union1d(newest, seasonal).astype(np.int64))

    def at(self, values: Doubles, rows: Rows) -> Doubles:
        """Returns the lagged values of one column after each of some rows, and a one: (rows, D + 1)."""
        lagged = values[rows[:, None] - self.offsets]
        return np.column_stack([lagged, np.ones(len(rows))])

    @property
    def first_row(self) -> int:
        """The first row after which all lags are there."""
        return int(self.offsets.max())


def ridge(values: Floats, origins: Rows, *, num_fitted: int, period: int, horizon: int) -> Floats:
    """Forecasts 1 to `horizon` rows after each origin by ridge regression: (origins, horizon, O).

    Hoerl & Kennard 1970, "Ridge regression: Biased estimation for nonorthogonal problems". The first
    `num_fitted` rows of values (N, O) are fitted, or the last 20,000 of them; the penalty is the one with the
    least absolute error on their last fifth, over all horizons. No origin is before row num_fitted − horizon.
    """
    lags = Lags.of(num_fitted=num_fitted, period=period, horizon=horizon)
    found = np.empty((len(origins), horizon, values.shape[1]), np.float32)
    for column in range(values.shape[1]):
        scaled, mean, scale = _standardised(values[:, column], num_fitted)
        fitted = scaled[max(0, num_fitted - _MAX_FITTED) : num_fitted]
        weights = _ridge_weights(fitted, lags, horizon)
        for begin in range(0, len(origins), _PIECE_ROWS):
            piece = slice(begin, begin + _PIECE_ROWS)
            found[piece, :, column] = lags.at(scaled, origins[piece]) @ weights * scale + mean
    return found


def _ridge_weights(values: Doubles, lags: Lags, horizon: int) -> Doubles:
    """Returns the weights of all horizons, (D + 1, horizon), for values (N) that are all fitted."""
    rows = np.arange(lags.first_row, len(values) - horizon)
    if not len(rows):
        return np.eye(len(lags.offsets) + 1, 1).repeat(horizon, axis=1)  # the newest value: persistence
    x = lags.at(values, rows)
    y = values[rows[:, None] + np.arange(1, horizon + 1)]  # (rows, horizon)
    num_searched = len(rows) - max(1, round(_JUDGED_SHARE * len(rows)))
    judged = slice(num_searched, None)
    searched = max(1, num_searched - horizon)  # their targets end before the judged rows begin
    errors = [
        np.abs(x[judged] @ _solve(x[:searched], y[:searched], penalty) - y[judged]).mean()
        for penalty in _PENALTIES
    ]
    return _solve(x, y, _PENALTIES[int(np.argmin(errors))])


def _solve(x: Doubles, y: Doubles, penalty: float) -> Doubles:
    return np.asarray(np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y), np.float64)


def _standardised(values: Floats, num_fitted: int) -> tuple[Doubles, float, float]:
    """Returns a column (N) with the first rows' mean and deviation taken out, and these two."""
    fitted = values[:num_fitted].astype(np.float64)
    mean, scale = float(fitted.mean()), float(fitted.std()) or 1.0
    return (values.astype(np.float64) - mean) / scale, mean, scale


def online(values: Floats, targets: Rows, *, horizon: int, num_fitted: int, period: int) -> Floats:
    """Forecasts the rows `targets` by recursive least squares that learns along the series: (targets, O).

    With a forgetting factor, as in Haykin 2002, "Adaptive filter theory", table 9.1. The forecast of a row is
    made `horizon` rows earlier, by weights that have learned from the rows up to there, beginning 20,000 rows
    before row num_fitted. The rows before that one choose the scaling alone; all targets are at it or later.
    """
    lags = _online_lags(horizon=horizon, period=period, num_fitted=num_fitted)
    first = max(lags.first_row, num_fitted - _MAX_FITTED)
    found = np.empty((len(targets), values.shape[1]), np.float32)
    for column in range(values.shape[1]):
        scaled, mean, scale = _standardised(values[:, column], num_fitted)
        x = lags.at(scaled, np.arange(first, len(values)))  # (rows, D + 1)
        predicted = _learn_along(x, scaled[first:], horizon)
        rows = targets - horizon - first
        persisted = scaled[targets - horizon]
        column_found = np.where(rows >= 0, predicted[np.maximum(rows, 0)], persisted)
        found[:, column] = column_found * scale + mean
    return found


def _online_lags(*, horizon: int, period: int, num_fitted: int) -> Lags:
    """Chooses the last values, and those beside the row to forecast one and two seasons before it."""
    seasons = [each * seasonal_lag(period, horizon) - horizon for each in (1, 2)] if period > 1 else []
    around = [season + each for season in seasons for each in (-1, 0, 1)]
    offsets = {0, 1, 2, 3, *(each for each in around if 0 <= each < num_fitted // 2)}
    return Lags(np.array(sorted(offsets), np.int64))


def _learn_along(x: Doubles, y: Doubles, horizon: int) -> Doubles:
    """Returns the forecast of y, `horizon` rows ahead, made after each row of x (rows, D): (rows)."""
    num_rows, size = x.shape
    weights, covariance = np.zeros(size), np.eye(size) * _PRIOR
    weights[0] = 1.0  # the newest value: persistence, until there is something better
    predicted = np.empty(num_rows)
    for row in range(num_rows):
        if row >= horizon:
            seen = x[row - horizon]
            product = covariance @ seen
            gain = product / (_FORGETTING + seen @ product)
            weights = weights + gain * (y[row] - weights @ seen)
            covariance = (covariance - np.outer(gain, product)) / _FORGETTING
            covariance *= min(1.0, size * _PRIOR / np.trace(covariance))  # nothing learned lets it grow
        predicted[row] = weights @ x[row]
    return predicted
