"""The simple forecasts, the choice of the season, and the figures."""

from dataclasses import replace

import numpy as np
import pytest

from model.baselines import autocorrelation_period, choose_period, figures, persistence, seasonal_naive
from model.datasets import Series

HOUR_NS = 3600 * 10**9


def hourly(values: np.ndarray, calendar: bool = True) -> Series:
    """Returns a series of one column, with a row per hour."""
    times_ns = np.arange(len(values), dtype=np.int64) * HOUR_NS
    return Series(("value",), times_ns, values.astype(np.float32)[:, None], HOUR_NS, calendar=calendar)


class TestForecasts:
    """Persistence and seasonal naive."""

    def test_forecasts_use_only_rows_already_seen(self):
        """Row r at horizon h is forecast from rows up to r − h: the last one, or whole seasons earlier."""
        values = np.arange(100, dtype=np.float32)[:, None]
        targets = np.array([50, 60])
        assert persistence(values, targets, 3)[:, 0].tolist() == [47, 57]
        assert seasonal_naive(values, targets, 3, period=10)[:, 0].tolist() == [40, 50]
        assert seasonal_naive(values, targets, 10, period=10)[:, 0].tolist() == [40, 50]
        assert seasonal_naive(values, targets, 11, period=10)[:, 0].tolist() == [30, 40]


class TestSeason:
    """The choice of the period."""

    def test_season_is_the_day_or_week_that_forecasts_better(self):
        """With dates, a weekly pattern chooses the week and a daily pattern the day."""
        hours = np.arange(24 * 7 * 6)
        daily = np.sin(2 * np.pi * hours / 24)
        weekend = (hours // 24) % 7 >= 5
        noise = np.random.default_rng(0).normal(0, 0.1, len(hours))
        assert choose_period(hourly(daily + weekend + noise)) == 24 * 7
        drift = np.cumsum(np.random.default_rng(1).normal(0, 0.2, len(hours)))
        assert choose_period(hourly(daily + drift)) == 24

    def test_a_week_is_no_candidate_before_two_are_seen(self):
        """With fewer rows than two weeks, the day is chosen."""
        hours = np.arange(24 * 10)
        assert choose_period(hourly(np.sin(2 * np.pi * hours / 24) + ((hours // 24) % 7 >= 5))) == 24

    @pytest.mark.parametrize("period", [7, 30, 100])
    def test_without_dates_the_season_comes_from_the_autocorrelation(self, period):
        """The period of a noisy wave is found, and not one of its multiples."""
        rows = np.arange(1000)
        noise = np.random.default_rng(2).normal(0, 0.2, len(rows))
        series = hourly(np.sin(2 * np.pi * rows / period) + noise, calendar=False)
        assert choose_period(series) == pytest.approx(period, abs=1)

    def test_no_season_falls_back_to_persistence(self):
        """A straight line and a constant have no season: the period is one, which is persistence."""
        assert autocorrelation_period(np.arange(50, dtype=np.float32)[:, None]) == 1
        assert choose_period(replace(hourly(np.ones(50)), calendar=False)) == 1


class TestFigures:
    """MAE, RMSE and altMAPE."""

    def test_figures_by_hand(self):
        """MAE, RMSE and altMAPE of four forecasts are those computed by hand."""
        actual = np.array([[1.0], [-2.0], [3.0], [4.0]], np.float32)
        predicted = np.array([[2.0], [-2.0], [1.0], [4.0]], np.float32)
        got = figures(predicted, actual)
        assert got == pytest.approx({"mae": 3 / 4, "rmse": (5 / 4) ** 0.5, "altmape": 3 / 10})
        assert figures(predicted, np.zeros_like(actual))["altmape"] is None
