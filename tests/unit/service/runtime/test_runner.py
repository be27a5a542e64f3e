"""The runner: states move exactly as the artifact says, and rows without a finite prediction stay."""

import numpy as np
import pytest
import torch

from service.runtime import artifact
from service.runtime.runner import Runner
from tests import fakes
from tests.fakes import CPU, FAULT, HUGE, Alone, Counter, bits, random_x, save


@pytest.fixture
def runner():
    """The Recurrence over a pool of eight rows."""
    return Runner(fakes.recurrence(), 8)


def step(runner, slots, x):
    """Runs one step of each session."""
    x = np.asarray(x, np.float32)
    return runner.step(np.array(slots), x, np.zeros(len(slots), np.int64))


def scan(runner, slots, x, lengths):
    """Runs several steps of each session."""
    x = np.asarray(x, np.float32)
    return runner.scan(np.array(slots), x, np.zeros(x.shape[:2], np.int64), np.array(lengths))


def states(runner, *slots):
    """Returns level and trend of each session, from its forecast."""
    zero = np.zeros((1, 0), np.float32)
    return [runner.forecast(slot, 0, 1, zero)[0].tolist() for slot in slots]


class TestSteps:
    """Steps and scans follow the artifact."""

    def test_steps_follow_the_artifact_bit_for_bit(self, runner):
        """Each session's predictions are those of the artifact folded alone, whichever slots share a call."""
        alone = [Alone(runner.artifact) for _ in range(8)]
        x = random_x(6, 8)
        for t, slots in enumerate(
            [[0, 1, 2, 3, 4, 5, 6, 7], [7, 2], [2], [5, 3, 1], [0, 7, 6], [2, 1, 0, 3]]
        ):
            y, applied = step(runner, slots, x[t, slots])
            assert applied.all()
            assert [bits(row) for row in y] == [alone[slot].step(x[t, slot]) for slot in slots]

    def test_a_scan_is_folded_steps(self, runner):
        """A scan gives the predictions and states of single steps, each row to its own length."""
        x, lengths = random_x(3, 5), [5, 1, 3]
        y, applied = scan(runner, [4, 0, 6], x, lengths)
        assert applied.all()
        for row, length in enumerate(lengths):
            alone = Alone(runner.artifact)
            assert bits(y[row, :length]) == alone.fold(x[row, :length])
            assert not y[row, length:].any()
            assert bits(step(runner, [[4, 0, 6][row]], x[row, :1])[0]) == alone.step(x[row, 0])

    def test_times_reach_the_script(self):
        """Times arrive as whole nanoseconds, finer than float32 can distinguish."""
        runner = Runner(fakes.recurrence(uses_time=True), 2)
        now = 1_700_000_000 * 10**9
        zero = np.zeros((1, 2), np.float32)
        y, _ = runner.step(np.array([0]), zero, np.array([now + 999_999_999]))
        z, _ = runner.step(np.array([1]), zero, np.array([now]))
        assert bits(y) == bits(z)
        assert y[0, 1] == pytest.approx(0.001 * 1_700_000_000)


class TestRestoring:
    """Rows that fail keep their states."""

    def test_a_row_without_a_finite_prediction_is_not_applied(self, runner):
        """The row is flagged and its state stays; the other states move."""
        step(runner, [0, 1, 2], [[1, 1], [HUGE, 0], [3, 3]])
        before = states(runner, 0, 1, 2)
        y, applied = step(runner, [0, 1, 2], [[1, 1], [HUGE, 0], [3, 3]])
        assert applied.tolist() == [True, False, True]
        after = states(runner, 0, 1, 2)
        assert after[1] == before[1]
        assert after[0] != before[0]
        assert after[2] != before[2]
        assert np.isfinite(y[[0, 2]]).all()

    def test_a_scan_that_overflows_midway_is_not_applied(self, runner):
        """A row with one step without a finite prediction does not move."""
        good = [[1, 1]] * 3
        bad = [[1, 1], [HUGE, 0], [HUGE, 0]]
        _, applied = scan(runner, [0, 1], [good, bad], [3, 3])
        assert applied.tolist() == [True, False]
        assert states(runner, 1) == [[0, 0]]

    def test_steps_past_a_rows_length_do_not_matter(self, runner):
        """Steps past a row's length may overflow."""
        bad = [[1, 1], [HUGE, 0], [HUGE, 0]]
        y, applied = scan(runner, [0, 1], [bad, bad], [1, 2])
        assert applied.tolist() == [True, True]
        assert np.isfinite(y).all()

    def test_a_batch_without_an_applied_row(self, runner):
        """If all rows fail, no state moves."""
        step(runner, [0], [[HUGE, 0]])
        before = states(runner, 0)
        _, applied = step(runner, [0], [[HUGE, 0]])
        assert not applied.any()
        assert states(runner, 0) == before

    def test_a_fault_leaves_every_state_as_it_was(self, runner):
        """An exception in the call moves no row of the batch."""
        step(runner, [0, 1], [[1, 1], [2, 2]])
        before = states(runner, 0, 1)
        with pytest.raises(torch.jit.Error):
            step(runner, [0, 1], [[1, 1], [FAULT, 0]])
        with pytest.raises(torch.jit.Error):
            scan(runner, [0, 1], [[[1, 1]] * 2, [[1, 1], [FAULT, 0]]], [2, 2])
        assert states(runner, 0, 1) == before


def test_clear_puts_one_session_to_its_start(runner):
    """A cleared slot predicts like a new session; other slots are unchanged."""
    step(runner, [0, 1], [[1, 1], [2, 2]])
    runner.clear(0)
    y, _ = step(runner, [0, 1], [[5, 5], [5, 5]])
    assert bits(y[0]) == Alone(runner.artifact).step([5, 5])
    beside = Alone(runner.artifact)
    beside.step([2, 2])
    assert bits(y[1]) == beside.step([5, 5])


class TestForecasts:
    """Forecasts change no state."""

    def test_a_forecast_leaves_the_state_as_it_was(self, runner):
        """A forecast repeated is the same, and later steps predict as without forecasts."""
        step(runner, [3], [[4, 4]])
        first, again = (runner.forecast(3, 0, 7, np.zeros((7, 0), np.float32)) for _ in range(2))
        assert first.shape == (7, 2)
        assert bits(first) == bits(again)
        alone = Alone(runner.artifact)
        alone.step([4, 4])
        assert bits(step(runner, [3], [[5, 5]])[0]) == alone.step([5, 5])

    def test_a_forecast_gets_the_known_future(self):
        """Future values reach the script row by row."""
        runner = Runner(fakes.recurrence(num_future=1), 2)
        plain = runner.forecast(0, 0, 3, np.zeros((3, 1), np.float32))
        planned = runner.forecast(0, 0, 3, np.array([[1], [2], [3]], np.float32))
        assert (planned - plain)[:, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("max_batch", "max_piece"), [(8, 4), (5, 1), (1, 32)])
def test_a_warm_up_leaves_the_pool_clean(tmp_path, max_batch, max_piece):
    """After a warm-up every session starts from zero."""
    path = save(tmp_path / "model.pt", Counter())
    runner = Runner(artifact.load("counter", "1", path, CPU), 8)
    runner.warm_up(max_batch, max_piece)
    y, _ = step(runner, range(8), np.zeros((8, 2)))
    assert (y == 1).all()
