"""Fitting: scaling, losses, epochs, and fits that continue where they stopped."""

import warnings

import numpy as np
import pytest
import torch

from model.fitting import Fit, Recipe, Rows, horizon_weights, set_scaling, validation_loss, window_loss
from model.network import Architecture, Network

SMALL = Architecture(num_inputs=1, num_outputs=1, hidden_size=16, head_steps=3)
RECIPE = Recipe(seed=1, max_epochs=4, num_streams=3, window_steps=8, burn_in_steps=4)


def rows_of(num_rows: int) -> Rows:
    """Returns rows of a wave with noise."""
    x = torch.from_numpy(np.sin(np.arange(num_rows) / 3.0).astype(np.float32)[:, None])
    noise = 0.05 * torch.randn(num_rows, 1, generator=torch.Generator().manual_seed(0))
    return Rows(4.0 + x + noise, torch.zeros(num_rows, dtype=torch.int64))


def fit_of(recipe: Recipe = RECIPE, num_rows: int = 120) -> Fit:
    """Returns a new fit of a network with seeded weights."""
    torch.manual_seed(7)
    return Fit(Network(SMALL), rows_of(num_rows), recipe)


def weights_of(fit: Fit) -> torch.Tensor:
    """Returns all averaged weights in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in fit.average.parameters()])


class TestScaling:
    """Statistics of the rows."""

    def test_scaling_is_mean_and_deviation(self):
        """Mean and standard deviation are taken per column; a constant column is scaled by one."""
        network = Network(Architecture(num_inputs=2, num_outputs=2, hidden_size=16))
        set_scaling(network, torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
        assert network.mean.tolist() == [2.0, 7.0]
        assert network.scale.tolist() == [1.0, 1.0]

    def test_horizons_weigh_alike(self):
        """A step ahead over which the series changes twice as much counts half as much."""
        network = Network(Architecture(num_inputs=1, num_outputs=1, hidden_size=16, head_steps=2))
        ramp = torch.arange(10.0)[:, None]  # changes by 1 over one step, by 2 over two
        assert horizon_weights(network, ramp).flatten().tolist() == pytest.approx([4 / 3, 2 / 3])


class TestLoss:
    """The losses of training and validation."""

    def test_window_loss_by_hand(self):
        """The loss is the weighted mean over the targets within the series, without those past its end."""
        network = Network(Architecture(num_inputs=1, num_outputs=1, hidden_size=16, head_steps=2))
        network.scale.fill_(2.0)
        x = torch.tensor([[0.0], [1.0], [3.0]])
        index = torch.tensor([[0], [1]])  # (T, B): after row 0 two targets, after row 1 one
        predicted = torch.zeros(2, 1, 2, 1)
        weights = torch.tensor([[1.0], [3.0]])
        everything = torch.ones(2, 1, 1, 1, dtype=torch.bool)
        loss = window_loss(network, x, index=index, predicted=predicted, counted=everything, weights=weights)
        assert loss.item() == pytest.approx((1.0 + 3.0 * 3.0 + 3.0) / 2.0 / 3)
        only_second = torch.tensor([False, True]).view(2, 1, 1, 1)
        loss = window_loss(network, x, index=index, predicted=predicted, counted=only_second, weights=weights)
        assert loss.item() == pytest.approx(3.0 / 2.0)

    def test_burn_in_counts_for_no_loss(self):
        """With the burn-in as long as all but one window, there is one update per epoch."""
        fit = fit_of(Recipe(num_streams=1, window_steps=8, burn_in_steps=8, max_epochs=1), num_rows=16)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit.recipe = Recipe(num_streams=2, window_steps=8, burn_in_steps=4, max_epochs=1)
            fit.run_epoch()
        assert fit.num_updates == 1

    def test_validation_judges_only_its_rows(self):
        """The loss counts forecasts made from the first validation row on; earlier rows only prime."""
        fit = fit_of()
        rows = rows_of(120)
        loss = validation_loss(fit.network, rows, first=90, prime_steps=1000, weights=fit.weights)
        assert loss == validation_loss(fit.network, rows, first=90, prime_steps=1000, weights=fit.weights)
        primed_otherwise = Rows(torch.cat([rows.x[:10] + 100.0, rows.x[10:]]), rows.time)
        assert validation_loss(
            fit.network, primed_otherwise, first=90, prime_steps=80, weights=fit.weights
        ) == pytest.approx(validation_loss(fit.network, rows, first=90, prime_steps=80, weights=fit.weights))
        changed = Rows(torch.cat([rows.x[:100], rows.x[100:] + 1.0]), rows.time)
        assert validation_loss(fit.network, changed, first=90, prime_steps=1000, weights=fit.weights) != loss


class TestFit:
    """Epochs of one fit."""

    def test_learns(self):
        """Thirty epochs bring the loss below 0.6 of its first value."""
        fit = fit_of(Recipe(num_streams=3, window_steps=8, burn_in_steps=4, max_epochs=30), num_rows=300)
        losses = [fit.run_epoch() for _ in range(30)]
        assert losses[-1] < 0.6 * losses[0]

    def test_rows_past_the_end_do_not_enter_the_fit(self):
        """Values after the given rows change no weight and no statistic."""
        rows = rows_of(200)
        torch.manual_seed(7)
        sliced = Fit(Network(SMALL), Rows(rows.x[:120], rows.time[:120]), RECIPE)
        spoilt = Rows(torch.cat([rows.x[:120], torch.full((80, 1), 1e6)]), rows.time)
        torch.manual_seed(7)
        other = Fit(Network(SMALL), Rows(spoilt.x[:120], spoilt.time[:120]), RECIPE)
        sliced.run_epoch(), other.run_epoch()
        assert torch.equal(weights_of(sliced), weights_of(other))
        assert torch.equal(sliced.network.mean, rows.x[:120].double().mean(0).float())

    def test_streams_too_short_are_refused(self):
        """Streams that are all burn-in are refused."""
        with pytest.raises(ValueError, match="burn-in"):
            fit_of(Recipe(num_streams=16, burn_in_steps=48), num_rows=120)


class TestRepeatability:
    """Seeds, and fits that continue."""

    def test_same_seed_same_weights(self):
        """Two fits of the same recipe end with the same bits; another seed ends with others."""
        first, second = fit_of(), fit_of()
        other = fit_of(Recipe(**{**RECIPE.__dict__, "seed": 2}))
        for fit in (first, second, other):
            fit.run_epoch(), fit.run_epoch()
        assert torch.equal(weights_of(first), weights_of(second))
        assert not torch.equal(weights_of(first), weights_of(other))

    def test_goes_on_where_it_stopped(self):
        """A fit that continues from its saved state equals an uninterrupted fit."""
        through, stopped = fit_of(), fit_of()
        through.run_epoch(), through.run_epoch()
        stopped.run_epoch()
        torch.rand(11)
        resumed = fit_of()
        resumed.load_state_dict(stopped.state_dict())
        resumed.run_epoch()
        assert torch.equal(weights_of(through), weights_of(resumed))
        assert (resumed.num_epochs, resumed.num_updates) == (2, through.num_updates)

    def test_leaves_the_callers_random_numbers_alone(self):
        """An epoch seeds its own random numbers and leaves the caller's as they were."""
        fit = fit_of()
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        fit.run_epoch()
        assert torch.equal(torch.rand(3), expected)
