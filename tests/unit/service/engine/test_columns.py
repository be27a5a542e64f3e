"""Columns: steps and pieces of blocks gathered for one cell call, and its results scattered."""

import numpy as np
import pytest

from service.engine import columns as columns_of
from service.engine.admission import Admission
from service.engine.progress import TIME_ABSENT
from service.engine.scheduler import Piece
from service.engine.work import INDEX_NEXT, Step
from service.errors import Reason
from service.runtime.manifest import parse
from tests import fakes
from tests.fakes import block_of

MODEL = fakes.recurrence(uses_time=True)


@pytest.fixture
def admission():
    """Admission to a model with time, over an empty session table."""
    return Admission(fakes.session_table(8, 2, 2, 3), parse(MODEL.manifest.text))


def step(slot, x, time):
    """Returns an admitted step."""
    work = Step(
        slot,
        0,
        np.array(x, "<f4").tobytes(),
        time=time,
        index=INDEX_NEXT,
        arrived_ns=0,
        on_done=lambda _: None,
    )
    work.run_time = time + 1
    return work


def block(slots, xs, times=None):
    """Returns a block."""
    return block_of(MODEL, slots, xs, times=times)


def piece(work, entries, offset, length):
    """Returns a piece of a block."""
    return Piece(work, np.array(entries), offset, length, begins_group=False)


def rows(*numbers):
    """Returns rows [number, number]."""
    return [[number, number] for number in numbers]


class TestGather:
    """The columns that steps and pieces make."""

    def test_nothing_to_run_is_none(self, admission):
        """There are no columns without steps and pieces, or for pieces without rows left."""
        work = block([1], [rows(1, 2)])
        work.totals[0] = 0
        assert columns_of.gather([], [piece(work, [0], 0, 2)], admission, 2) is None
        assert columns_of.gather([], [], admission, 2) is None

    def test_single_steps_are_columns_one_step_wide(self, admission):
        """A step's slot, input and both times are in its row."""
        found = columns_of.gather([step(3, [1, 2], 10), step(0, [3, 4], 20)], [], admission, 2)
        assert found.slots.tolist() == [3, 0]
        assert found.lengths.tolist() == [1, 1]
        assert found.x.tolist() == [[[1, 2]], [[3, 4]]]
        assert found.times.tolist() == [[11], [21]]
        assert found.given_times.tolist() == [[10], [20]]

    def test_a_model_without_time_gets_none(self):
        """The model and the fingerprints get time 0, whatever times steps and blocks give."""
        plain = Admission(fakes.session_table(8, 2, 2, 3), parse(fakes.recurrence().manifest.text))
        for steps, pieces in (
            ([step(3, [1, 2], 10), step(0, [3, 4], 20)], []),
            ([step(3, [1, 2], 10)], [piece(block([5], [rows(1)], times=[100]), [0], 0, 1)]),
        ):
            found = columns_of.gather(steps, pieces, plain, 2)
            assert found.times.tolist() == found.given_times.tolist() == [[0], [0]]

    def test_columns_do_not_change_with_their_sources(self, admission):
        """Torch may write to the columns: they share no memory with a step's bytes or a block's rows."""
        one, work = step(3, [1, 2], 10), block([5, 6], [rows(1), rows(2)], times=[1, 2])
        for steps, pieces in (([one], []), ([], [piece(work, [0, 1], 0, 1)])):
            found = columns_of.gather(steps, pieces, admission, 2)
            assert found.x.flags.writeable
            found.x[:] = 9
            found.slots[:] = 7
        assert np.frombuffer(one.x, np.float32).tolist() == [1, 2]
        assert (work.x.tolist(), work.slots.tolist()) == ([[1, 1], [2, 2]], [5, 6])

    def test_pieces_come_after_the_steps(self, admission):
        """The steps come first, then the entries of each piece."""
        work = block([5, 6], [rows(1, 2), rows(3, 4)], times=[100, 101, 102, 103])
        found = columns_of.gather([step(3, [9, 9], 10)], [piece(work, [0, 1], 1, 1)], admission, 2)
        assert found.slots.tolist() == [3, 5, 6]
        assert found.x[:, 0, 0].tolist() == [9, 2, 4]
        assert found.times[:, 0].tolist() == [11, 101, 103]
        assert found.given_times[:, 0].tolist() == [10, 101, 103]

    def test_short_entries_are_filled_up_with_their_last_row(self, admission):
        """Rows past an entry's length repeat its last row, and are not counted."""
        work = block([5, 6], [rows(1, 2, 3), rows(4)], times=[1, 2, 3, 4])
        found = columns_of.gather([], [piece(work, [0, 1], 0, 3)], admission, 2)
        assert found.lengths.tolist() == [3, 1]
        assert found.x[:, :, 0].tolist() == [[1, 2, 3], [4, 4, 4]]

    def test_pieces_of_different_lengths_share_a_call(self, admission):
        """A shorter piece is padded; the lengths say how far each row goes."""
        first, second = block([1], [rows(1, 2, 3, 4)]), block([2, 3], [rows(5, 6), rows(7, 8)])
        pieces = [piece(first, [0], 0, 4), piece(second, [0, 1], 0, 2)]
        found = columns_of.gather([], pieces, admission, 2)
        assert found.x.shape == (3, 4, 2)
        assert found.lengths.tolist() == [4, 2, 2]
        assert found.x[1, :2, 0].tolist() == [5, 6]
        assert (found.given_times == TIME_ABSENT).all()

    def test_entries_without_rows_left_are_left_out(self, admission):
        """An entry that failed, or was applied before as a whole, is not in the columns."""
        work = block([5, 6, 7], [rows(1), rows(2), rows(3)])
        work.fail(1, columns_of.out_of_range("x"))
        found = columns_of.gather([], [piece(work, [0, 1, 2], 0, 1)], admission, 2)
        assert found.slots.tolist() == [5, 7]
        assert found.x[:, 0, 0].tolist() == [1, 3]

    def test_failed_and_repeated_entries_of_a_frame_are_left_out(self, admission):
        """The other entries keep their slots, rows, times and places in the results."""
        work = block([4, 5, 6, 7], [rows(1), rows(2), rows(3), rows(4)], times=[10, 20, 30, 40])
        work.y[1] = [8, 8]  # a repeat: answered, and taken off its entry
        work.starts[1] += 1
        work.totals[1] -= 1
        work.fail(2, columns_of.out_of_range("x"))
        found = columns_of.gather([], [piece(work, [0, 1, 2, 3], 0, 1)], admission, 2)
        assert found.slots.tolist() == [4, 7]
        assert found.lengths.tolist() == [1, 1]
        assert found.x.tolist() == [[[1, 1]], [[4, 4]]]
        assert (found.times.tolist(), found.given_times.tolist()) == ([[10], [40]], [[10], [40]])
        columns_of.scatter(found, np.array([[[1, 2]], [[3, 4]]], np.float32), np.array([True, True]))
        assert work.y[[0, 1, 3]].tolist() == [[1, 2], [8, 8], [3, 4]]
        assert np.isnan(work.y[2]).all()
        assert work.num_applied.tolist() == [1, 0, 0, 1]
        assert list(work.errors) == [2]

    def test_a_group_of_a_frame_is_its_own_entries(self, admission):
        """A group of a frame runs the rows of its own entries."""
        work = block([4, 5, 6, 7], [rows(1), rows(2), rows(3), rows(4)], times=[10, 20, 30, 40])
        found = columns_of.gather([], [piece(work, [2, 3], 0, 1)], admission, 2)
        assert (found.slots.tolist(), found.x[:, 0, 0].tolist()) == ([6, 7], [3, 4])
        columns_of.scatter(found, np.array([[[1, 2]], [[3, 4]]], np.float32), np.array([True, True]))
        assert work.y[2:].tolist() == [[1, 2], [3, 4]]
        assert np.isnan(work.y[:2]).all()
        assert work.num_applied.tolist() == [0, 0, 1, 1]

    def test_a_frame_without_rows_left_is_left_out(self, admission):
        """A frame without rows left takes no row beside other work, and alone makes no columns."""
        gone, work = block([4], [rows(1)]), block([5], [rows(2)])
        gone.fail(0, columns_of.out_of_range("x"))
        found = columns_of.gather(
            [step(3, [1, 2], 10)], [piece(gone, [0], 0, 1), piece(work, [0], 0, 1)], admission, 2
        )
        assert found.slots.tolist() == [3, 5]
        assert [part.piece.block for part in found.pieces] == [work]
        assert columns_of.gather([], [piece(gone, [0], 0, 1)], admission, 2) is None

    def test_rows_known_before_shift_a_piece(self, admission):
        """Rows that were taken off an entry's front do not run again."""
        work = block([5], [rows(1, 2, 3, 4, 5)])
        work.starts[0] += 2
        work.totals[0] -= 2
        found = columns_of.gather([], [piece(work, [0], 0, 4)], admission, 2)
        assert found.lengths.tolist() == [3]
        assert found.x[0, :3, 0].tolist() == [3, 4, 5]


class TestScatter:
    """The predictions and errors that steps and blocks get."""

    def test_results_go_back_to_their_steps_and_rows(self, admission):
        """Each step and each row of a block gets its own prediction."""
        one, wide = step(3, [9, 9], 1), block([5, 6], [rows(1, 2), rows(4)])
        found = columns_of.gather([one], [piece(wide, [0, 1], 0, 1)], admission, 2)
        y = np.arange(6, dtype=np.float32).reshape(3, 1, 2)
        columns_of.scatter(found, y, np.array([True, True, True]))
        assert one.y == [0, 1]
        assert wide.y[[0, 2]].tolist() == [[2, 3], [4, 5]]
        assert np.isnan(wide.y[1]).all()
        assert wide.num_applied.tolist() == [1, 1]
        assert wide.errors == {}

    def test_results_of_long_pieces_fill_their_lengths(self, admission):
        """An entry gets predictions up to its length, also beside a longer piece."""
        first, second = block([5, 6], [rows(1, 2), rows(4)]), block([7], [rows(1, 2, 3)])
        pieces = [piece(first, [0, 1], 0, 2), piece(second, [0], 0, 3)]
        found = columns_of.gather([], pieces, admission, 2)
        y = np.arange(18, dtype=np.float32).reshape(3, 3, 2)
        columns_of.scatter(found, y, np.array([True, True, True]))
        assert first.y.tolist() == [[0, 1], [2, 3], [6, 7]]
        assert second.y.tolist() == [[12, 13], [14, 15], [16, 17]]
        assert (first.num_applied.tolist(), second.num_applied.tolist()) == ([2, 1], [3])

    def test_one_row_of_a_frame_is_not_applied(self, admission):
        """The other rows get their predictions, also those of another frame in the call."""
        first, second = block([4, 5], [rows(1), rows(2)]), block([6, 7], [rows(3), rows(4)])
        found = columns_of.gather([], [piece(first, [0, 1], 0, 1), piece(second, [0, 1], 0, 1)], admission, 2)
        y = np.arange(8, dtype=np.float32).reshape(4, 1, 2)
        columns_of.scatter(found, y, np.array([True, True, False, True]))
        assert first.y.tolist() == [[0, 1], [2, 3]]
        assert (first.errors, first.num_applied.tolist()) == ({}, [1, 1])
        assert second.y[1].tolist() == [6, 7]
        assert np.isnan(second.y[0]).all()
        assert (list(second.errors), second.num_applied.tolist()) == ([0], [0, 1])

    def test_predictions_are_exact_floats(self, admission):
        """A step's Python floats are the float32 values to the last bit."""
        one = step(3, [9, 9], 1)
        found = columns_of.gather([one], [], admission, 2)
        y = np.array([[[0.1, 1e-42]]], np.float32)
        columns_of.scatter(found, y, np.array([True]))
        assert np.array(one.y, np.float32).tobytes() == y.tobytes()
        assert all(type(value) is float for value in one.y)

    def test_rows_not_applied_are_errors_of_their_own(self, admission):
        """A row without a finite prediction fails its step or entry, with the field's name, and no other."""
        good, bad = step(3, [9, 9], 1), step(4, [8, 8], 1)
        long = block([5, 6], [rows(1), rows(2)])
        found = columns_of.gather([good, bad], [piece(long, [0, 1], 0, 1)], admission, 2)
        columns_of.scatter(found, np.ones((4, 1, 2), np.float32), np.array([True, False, False, True]))
        assert (good.error, bad.y) == (None, [])
        assert (bad.error.reason, bad.error.metadata["field"]) == (Reason.INVALID_ARGUMENT, "x")
        assert long.errors[0].metadata["field"] == "x_raw"
        assert (long.num_applied.tolist(), long.totals.tolist()) == ([0, 1], [0, 1])
        assert np.isnan(long.y[0]).all()
        assert long.y[1].tolist() == [1, 1]
