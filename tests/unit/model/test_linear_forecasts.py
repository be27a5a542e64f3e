"""The linear forecasts: what they learn where the best forecast is known, and that they see nothing later."""

import numpy as np
import pytest

from model import linear_forecasts
from model.linear_forecasts import Lags, online, ridge

PERIOD = 24


def autoregression(num_rows, *, seed=0, flips_at=None):
    """Returns y_t = ±(0.6 y_{t−1} + 0.3 y_{t−2}) + noise of deviation 1, as a column; the sign may flip."""
    noise = np.random.default_rng(seed).standard_normal(num_rows)
    y = np.zeros(num_rows)
    for row in range(2, num_rows):
        sign = -1.0 if flips_at is not None and row >= flips_at else 1.0
        y[row] = sign * (0.6 * y[row - 1] + 0.3 * y[row - 2]) + noise[row]
    return y.astype(np.float32)[:, None]


def seasonal(num_rows):
    """Returns a day's shape, again and again, on a slow trend, as two columns of other sizes."""
    row = np.arange(num_rows)
    shape = np.random.default_rng(1).standard_normal(PERIOD)[row % PERIOD] + 0.001 * row
    return np.column_stack([100 + 10 * shape, -1e4 * shape]).astype(np.float32)


def errors_of(values, *, num_fitted, horizon, period=1):
    """Returns the mean absolute errors of both forecasts, after the fitted rows."""
    targets = np.arange(num_fitted, len(values))
    origins = np.arange(num_fitted - horizon, len(values) - 1)
    options = {"num_fitted": num_fitted, "period": period, "horizon": horizon}
    by_ridge = ridge(values, origins, **options)[targets - horizon - origins[0], horizon - 1]
    by_online = online(values, targets, **options)
    return [np.abs(each - values[targets]).mean(axis=0) for each in (by_ridge, by_online)]


class TestLearning:
    """Both come near the best forecast that there is."""

    def test_an_autoregression_is_forecast_as_well_as_its_noise_allows(self):
        """One step ahead only the noise is left: its mean absolute value is √(2/π)."""
        for error in errors_of(autoregression(6000), num_fitted=4000, horizon=1):
            assert error == pytest.approx(np.sqrt(2 / np.pi), rel=0.04)

    @pytest.mark.parametrize("horizon", [1, 5, 30])
    def test_a_season_on_a_trend_is_forecast_in_each_columns_units(self, horizon):
        """Of which nothing is noise; the columns differ by a factor of 1,000."""
        values = seasonal(2000)
        for error in errors_of(values, num_fitted=1500, horizon=horizon, period=PERIOD):
            assert (error < 0.01 * values.std(axis=0)).all()

    def test_a_series_that_changes_its_ways_is_learned_anew_online_alone(self):
        """Ridge goes on as it was fitted."""
        by_ridge, by_online = errors_of(autoregression(12_000, flips_at=4000), num_fitted=4000, horizon=1)
        assert by_online < 0.8 * by_ridge

    def test_a_constant_column_and_a_short_series_are_forecast_too(self):
        """By what was last seen."""
        for values in (np.full((40, 1), 7.0, np.float32), np.float32([[1], [2], [3], [4]])):
            for error in errors_of(values, num_fitted=len(values) - 2, horizon=2):
                assert np.isfinite(error).all()
        assert errors_of(np.full((40, 1), 7.0, np.float32), num_fitted=30, horizon=2) == [0.0, 0.0]


class TestRidge:
    """The closed form."""

    def test_the_weights_are_those_of_least_squares_with_rows_for_the_penalty(self, monkeypatch):
        """Least squares over the rows, and over √penalty times each weight, solved another way."""
        monkeypatch.setattr(linear_forecasts, "_PENALTIES", (3.0,))
        values, num_fitted, horizon = autoregression(400), 300, 2
        lags = Lags.of(num_fitted=num_fitted, period=1, horizon=horizon)
        scaled = (values[:, 0].astype(np.float64) - values[:num_fitted].mean()) / values[:num_fitted].std()
        rows = np.arange(lags.first_row, num_fitted - horizon)
        x = np.array([[*(scaled[row - lag] for lag in lags.offsets), 1.0] for row in rows])
        y = np.array([[scaled[row + 1], scaled[row + 2]] for row in rows])
        penalty = np.sqrt(3.0) * np.eye(x.shape[1])
        weights = np.linalg.lstsq(np.vstack([x, penalty]), np.vstack([y, np.zeros((len(penalty), 2))]))[0]
        expected = np.array([*(scaled[350 - lag] for lag in lags.offsets), 1.0]) @ weights
        expected = expected * values[:num_fitted].std() + values[:num_fitted].mean()
        found = ridge(values, np.array([350]), num_fitted=num_fitted, period=1, horizon=horizon)
        assert found[0, :, 0] == pytest.approx(expected, rel=1e-4)

    def test_the_penalty_is_the_one_that_forecasts_the_last_fifth_best(self, monkeypatch):
        """Of noise alone nothing can be learned: the largest penalty wins over none."""
        noise = np.random.default_rng(3).standard_normal((600, 1)).astype(np.float32)
        options = {"num_fitted": 500, "period": 1, "horizon": 1}
        found = {}
        for penalties in ((1e-6,), (1e9,), (1e-6, 1e9)):
            monkeypatch.setattr(linear_forecasts, "_PENALTIES", penalties)
            found[penalties] = ridge(noise, np.arange(500, 599), **options)
        assert np.array_equal(found[1e-6, 1e9], found[1e9,])
        assert not np.array_equal(found[1e-6,], found[1e9,])

    @pytest.mark.parametrize(
        ("num_fitted", "period", "horizon", "expected"),
        [
            (2000, 336, 48, [*range(60), *range(276, 349)]),
            (2000, 24, 5, range(60)),
            (2000, 1, 5, range(60)),
            (200, 336, 40, range(40)),
            (3, 1, 5, [0]),
        ],
    )
    def test_lags_are_the_newest_and_those_around_a_season_ago(self, num_fitted, period, horizon, expected):
        """As far as three quarters of the rows are left to fit."""
        assert Lags.of(num_fitted=num_fitted, period=period, horizon=horizon).offsets.tolist() == [*expected]


@pytest.mark.parametrize("horizon", [1, 7])
def test_no_forecast_sees_a_later_row(horizon):
    """Other values from row 450 on change no forecast made before row 450, and change others."""
    values, origins = seasonal(500), np.arange(400 - horizon, 499)
    spoilt = values.copy()
    spoilt[450:] += 1e3
    options = {"num_fitted": 400, "period": PERIOD, "horizon": horizon}
    before, after = (ridge(each, origins, **options) for each in (values, spoilt))
    made_before = origins < 450
    assert np.array_equal(before[made_before], after[made_before])
    assert not np.array_equal(before[~made_before], after[~made_before])
    targets = np.arange(400, 500)
    before, after = (online(each, targets, **options) for each in (values, spoilt))
    made_before = targets - horizon < 450
    assert np.array_equal(before[made_before], after[made_before])
    assert not np.array_equal(before[~made_before], after[~made_before])
