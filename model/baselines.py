"""Owns the simple forecasts that a network must beat, and the error figures by which all are compared.

Knows nothing of networks, and imports no torch.

Persistence and the seasonal naive forecast are those of Hyndman & Athanasopoulos 2021, "Forecasting:
principles and practice", section 5.2. Every forecast of row r at horizon h uses rows up to r − h alone.
"""

import numpy as np
from numpy.typing import NDArray

from model.calendar_features import DAY_NS, WEEK_NS
from model.datasets import Series

Floats = NDArray[np.float32]


def persistence(values: Floats, targets: NDArray[np.int64], horizon: int) -> Floats:
    """Forecasts the rows `targets` of values (N, O) by the last value seen: (targets, O)."""
    return values[targets - horizon]


def seasonal_naive(values: Floats, targets: NDArray[np.int64], horizon: int, *, period: int) -> Floats:
    """Forecasts the rows `targets` of values (N, O) by the latest value seen whole periods earlier."""
    return values[targets - seasonal_lag(period, horizon)]


def seasonal_lag(period: int, horizon: int) -> int:
    """Returns how far before a row the same place of a season lies that is known `horizon` rows earlier."""
    return period * -(-horizon // period)


def choose_period(series: Series) -> int:
    """Chooses the season, in rows, from a series that must end before the rows to forecast.

    With dates: a day or a week, whichever forecasts this series with the smaller error. Otherwise, or where
    there are fewer than two periods of either: the lag that `autocorrelation_period` finds.
    """
    candidates: list[int] = []
    if series.calendar and series.interval_ns:
        spans_ns = [span for span in (DAY_NS, WEEK_NS) if span % series.interval_ns == 0]
        candidates = [span // series.interval_ns for span in spans_ns if span // series.interval_ns > 1]
    candidates = [period for period in candidates if 2 * period <= len(series)]
    if not candidates:
        return autocorrelation_period(series.values)
    longest = max(candidates)
    errors = [np.abs(series.values[longest:] - series.values[longest - p : -p]).mean() for p in candidates]
    return candidates[int(np.argmin(errors))]


def autocorrelation_period(values: Floats) -> int:
    """Returns the lag of the first high peak of the autocorrelation of values (N, O); 1 if there is none.

    A high peak has at least 0.95 of the highest, so that the period wins over its multiples. The
    autocorrelation comes from the power spectrum (Wiener-Khinchin theorem), summed over the columns.
    """
    centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    num_rows = len(centred)
    spectrum = np.abs(np.fft.rfft(centred, 2 * num_rows, axis=0)) ** 2
    correlation = np.fft.irfft(spectrum.sum(axis=1))[: num_rows // 2]
    num_pairs = num_rows - np.arange(len(correlation))
    correlation = correlation / num_pairs  # every pair of rows weighs the same, at every lag
    peaks = [
        lag
        for lag in range(2, len(correlation) - 1)
        if correlation[lag] > 0 and correlation[lag - 1] < correlation[lag] >= correlation[lag + 1]
    ]
    if not peaks:
        return 1
    highest = max(correlation[lag] for lag in peaks)
    return next(lag for lag in peaks if correlation[lag] >= 0.95 * highest)


def figures(predicted: Floats, actual: Floats) -> dict[str, float | None]:
    """Compares forecasts with the actual values, over all rows and columns: MAE, RMSE and altMAPE.

    MAE is mean |error|, RMSE the root of mean error², altMAPE mean |error| / mean |actual|; altMAPE is None
    where all actual values are zero.
    """
    error = predicted.astype(np.float64) - actual
    mean_actual = float(np.abs(actual.astype(np.float64)).mean())
    mae = float(np.abs(error).mean())
    rmse = float(np.sqrt((error**2).mean()))
    return {"mae": mae, "rmse": rmse, "altmape": mae / mean_actual if mean_actual else None}
