"""The simple forecasts, the choice of the season, and the figures."""

from dataclasses import replace

import numpy as np
import pytest

from model.baselines import autocorrelation_period, choose_period, figures, persistence, seasonal_naive
from model.datasets import Series

HOUR_NS = 3600 * 10**9


def hourly(values: np.ndarray, calendar: bool = True) -> Series:
    """A series of one column, a row an hour."""
    times_ns = np.arange(len(values), dtype=np.int64) * HOUR_NS
    return Series(("value",), times_ns, values.astype(np.float32)[:, None], HOUR_NS, calendar=calendar)


def test_forecasts_use_only_rows_already_seen():
    """Row r at horizon h is forecast from rows up to r − h: the last, or the latest whole seasons back."""
    values = np.arange(100, dtype=np.float32)[:, None]
    targets = np.array([50, 60])
    assert persistence(values, targets, 3)[:, 0].tolist() == [47, 57]
    assert seasonal_naive(values, targets, 3, period=10)[:, 0].tolist() == [40, 50]
    assert seasonal_naive(values, targets, 10, period=10)[:, 0].tolist() == [40, 50]
    assert seasonal_naive(values, targets, 11, period=10)[:, 0].tolist() == [30, 40]


def test_season_is_the_day_or_week_that_forecasts_better():
    """With dates, a weekly pattern chooses the week and a daily one the day."""
    hours = np.arange(24 * 7 * 6)
    daily = np.sin(2 * np.pi * hours / 24)
    weekend = (hours // 24) % 7 >= 5
    noise = np.random.default_rng(0).normal(0, 0.1, len(hours))
    assert choose_period(hourly(daily + weekend + noise)) == 24 * 7
    drift = np.cumsum(np.random.default_rng(1).normal(0, 0.2, len(hours)))
    assert choose_period(hourly(daily + drift)) == 24


def test_a_week_is_no_candidate_before_two_are_seen():
    """Fewer rows than two weeks leave the day."""
    hours = np.arange(24 * 10)
    assert choose_period(hourly(np.sin(2 * np.pi * hours / 24) + ((hours // 24) % 7 >= 5))) == 24


@pytest.mark.parametrize("period", [7, 30, 100])
def test_without_dates_the_season_comes_from_the_autocorrelation(period):
    """A wave's period is found, with noise on it, and its multiples are not taken for it."""
    rows = np.arange(1000)
    noise = np.random.default_rng(2).normal(0, 0.2, len(rows))
    series = hourly(np.sin(2 * np.pi * rows / period) + noise, calendar=False)
    assert choose_period(series) == pytest.approx(period, abs=1)


def test_no_season_falls_back_to_persistence():
    """A straight line or a constant has no season: period one, the last value."""
    assert autocorrelation_period(np.arange(50, dtype=np.float32)[:, None]) == 1
    assert choose_period(replace(hourly(np.ones(50)), calendar=False)) == 1


def test_figures_by_hand():
    """MAE, RMSE and altMAPE of four errors."""
    actual = np.array([[1.0], [-2.0], [3.0], [4.0]], np.float32)
    predicted = np.array([[2.0], [-2.0], [1.0], [4.0]], np.float32)
    got = figures(predicted, actual)
    assert got == pytest.approx({"mae": 3 / 4, "rmse": (5 / 4) ** 0.5, "altmape": 3 / 10})
    assert figures(predicted, np.zeros_like(actual))["altmape"] is None
