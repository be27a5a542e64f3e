"""Columns: steps and pieces of blocks laid side by side for one call, and its results handed back."""

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
    """Four sessions at their start, on a model that uses time."""
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
    """Returns rows of the same number twice."""
    return [[number, number] for number in numbers]


def test_nothing_to_run_is_none(admission):
    """Without steps, and with pieces whose entries have no rows left, there is no call."""
    work = block([1], [rows(1, 2)])
    work.totals[0] = 0
    assert columns_of.gather([], [piece(work, [0], 0, 2)], admission, 2) is None
    assert columns_of.gather([], [], admission, 2) is None


def test_single_steps_are_columns_one_step_wide(admission):
    """Slots, inputs and both times of each step stand in its row."""
    found = columns_of.gather([step(3, [1, 2], 10), step(0, [3, 4], 20)], [], admission, 2)
    assert found.slots.tolist() == [3, 0]
    assert found.lengths.tolist() == [1, 1]
    assert found.x.tolist() == [[[1, 2]], [[3, 4]]]
    assert found.times.tolist() == [[11], [21]]
    assert found.given_times.tolist() == [[10], [20]]


def test_a_model_without_time_gets_none():
    """Whatever times the steps say, the model and the fingerprints get zeros; as with any one block."""
    plain = Admission(fakes.session_table(8, 2, 2, 3), parse(fakes.recurrence().manifest.text))
    for steps, pieces in (
        ([step(3, [1, 2], 10), step(0, [3, 4], 20)], []),
        ([step(3, [1, 2], 10)], [piece(block([5], [rows(1)], times=[100]), [0], 0, 1)]),
    ):
        found = columns_of.gather(steps, pieces, plain, 2)
        assert found.times.tolist() == found.given_times.tolist() == [[0], [0]]


def test_columns_do_not_change_with_their_sources(admission):
    """Torch may write to a call's inputs: neither a step's bytes nor a block's rows are its memory."""
    one, work = step(3, [1, 2], 10), block([5, 6], [rows(1), rows(2)], times=[1, 2])
    for steps, pieces in (([one], []), ([], [piece(work, [0, 1], 0, 1)])):
        found = columns_of.gather(steps, pieces, admission, 2)
        assert found.x.flags.writeable
        found.x[:] = 9
        found.slots[:] = 7
    assert np.frombuffer(one.x, np.float32).tolist() == [1, 2]
    assert (work.x.tolist(), work.slots.tolist()) == ([[1, 1], [2, 2]], [5, 6])


def test_pieces_stand_behind_the_steps(admission):
    """A call of steps and one-step pieces has the steps first, then each piece's entries."""
    work = block([5, 6], [rows(1, 2), rows(3, 4)], times=[100, 101, 102, 103])
    found = columns_of.gather([step(3, [9, 9], 10)], [piece(work, [0, 1], 1, 1)], admission, 2)
    assert found.slots.tolist() == [3, 5, 6]
    assert found.x[:, 0, 0].tolist() == [9, 2, 4]
    assert found.times[:, 0].tolist() == [11, 101, 103]
    assert found.given_times[:, 0].tolist() == [10, 101, 103]


def test_short_entries_are_filled_up_with_their_last_row(admission):
    """Rows past an entry's length are its own, finite, and not counted."""
    work = block([5, 6], [rows(1, 2, 3), rows(4)], times=[1, 2, 3, 4])
    found = columns_of.gather([], [piece(work, [0, 1], 0, 3)], admission, 2)
    assert found.lengths.tolist() == [3, 1]
    assert found.x[:, :, 0].tolist() == [[1, 2, 3], [4, 4, 4]]


def test_pieces_of_different_lengths_share_a_call(admission):
    """The shorter piece is widened; its lengths say how far it goes."""
    first, second = block([1], [rows(1, 2, 3, 4)]), block([2, 3], [rows(5, 6), rows(7, 8)])
    pieces = [piece(first, [0], 0, 4), piece(second, [0, 1], 0, 2)]
    found = columns_of.gather([], pieces, admission, 2)
    assert found.x.shape == (3, 4, 2)
    assert found.lengths.tolist() == [4, 2, 2]
    assert found.x[1, :2, 0].tolist() == [5, 6]
    assert (found.given_times == TIME_ABSENT).all()


def test_entries_without_rows_left_are_left_out(admission):
    """An entry that failed, or was known as a whole, is not in the call."""
    work = block([5, 6, 7], [rows(1), rows(2), rows(3)])
    work.fail(1, columns_of.out_of_range("x"))
    found = columns_of.gather([], [piece(work, [0, 1, 2], 0, 1)], admission, 2)
    assert found.slots.tolist() == [5, 7]
    assert found.x[:, 0, 0].tolist() == [1, 3]


def test_of_a_frame_entries_failed_or_repeated_before_are_left_out(admission):
    """The others keep slot, row, time and place in the results; those left out keep what they had."""
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


def test_a_group_of_a_frame_is_its_own_entries(admission):
    """A frame cut in groups runs each entry's own row, from wherever the group begins."""
    work = block([4, 5, 6, 7], [rows(1), rows(2), rows(3), rows(4)], times=[10, 20, 30, 40])
    found = columns_of.gather([], [piece(work, [2, 3], 0, 1)], admission, 2)
    assert (found.slots.tolist(), found.x[:, 0, 0].tolist()) == ([6, 7], [3, 4])
    columns_of.scatter(found, np.array([[[1, 2]], [[3, 4]]], np.float32), np.array([True, True]))
    assert work.y[2:].tolist() == [[1, 2], [3, 4]]
    assert np.isnan(work.y[:2]).all()
    assert work.num_applied.tolist() == [0, 0, 1, 1]


def test_a_frame_of_which_nothing_is_left_is_no_part(admission):
    """Beside others it takes no row; alone there is no call."""
    gone, work = block([4], [rows(1)]), block([5], [rows(2)])
    gone.fail(0, columns_of.out_of_range("x"))
    found = columns_of.gather(
        [step(3, [1, 2], 10)], [piece(gone, [0], 0, 1), piece(work, [0], 0, 1)], admission, 2
    )
    assert found.slots.tolist() == [3, 5]
    assert [part.piece.block for part in found.pieces] == [work]
    assert columns_of.gather([], [piece(gone, [0], 0, 1)], admission, 2) is None


def test_rows_known_before_shift_a_piece(admission):
    """What was taken off an entry's front is not run again."""
    work = block([5], [rows(1, 2, 3, 4, 5)])
    work.starts[0] += 2
    work.totals[0] -= 2
    found = columns_of.gather([], [piece(work, [0], 0, 4)], admission, 2)
    assert found.lengths.tolist() == [3]
    assert found.x[0, :3, 0].tolist() == [3, 4, 5]


def test_results_go_back_to_their_steps_and_rows(admission):
    """Each step and each row of each block gets its own prediction, and no other."""
    one, wide = step(3, [9, 9], 1), block([5, 6], [rows(1, 2), rows(4)])
    found = columns_of.gather([one], [piece(wide, [0, 1], 0, 1)], admission, 2)
    y = np.arange(6, dtype=np.float32).reshape(3, 1, 2)
    columns_of.scatter(found, y, np.array([True, True, True]))
    assert one.y == [0, 1]
    assert wide.y[[0, 2]].tolist() == [[2, 3], [4, 5]]
    assert np.isnan(wide.y[1]).all()
    assert wide.num_applied.tolist() == [1, 1]
    assert wide.errors == {}


def test_results_of_long_pieces_fill_their_lengths(admission):
    """Of each row the steps within its entry's length count, also where another piece is longer."""
    first, second = block([5, 6], [rows(1, 2), rows(4)]), block([7], [rows(1, 2, 3)])
    pieces = [piece(first, [0, 1], 0, 2), piece(second, [0], 0, 3)]
    found = columns_of.gather([], pieces, admission, 2)
    y = np.arange(18, dtype=np.float32).reshape(3, 3, 2)
    columns_of.scatter(found, y, np.array([True, True, True]))
    assert first.y.tolist() == [[0, 1], [2, 3], [6, 7]]
    assert second.y.tolist() == [[12, 13], [14, 15], [16, 17]]
    assert (first.num_applied.tolist(), second.num_applied.tolist()) == ([2, 1], [3])


def test_a_frame_of_which_one_row_is_not_applied(admission):
    """The others get theirs all the same, each in its place, though another frame was applied as a whole."""
    first, second = block([4, 5], [rows(1), rows(2)]), block([6, 7], [rows(3), rows(4)])
    found = columns_of.gather([], [piece(first, [0, 1], 0, 1), piece(second, [0, 1], 0, 1)], admission, 2)
    y = np.arange(8, dtype=np.float32).reshape(4, 1, 2)
    columns_of.scatter(found, y, np.array([True, True, False, True]))
    assert first.y.tolist() == [[0, 1], [2, 3]]
    assert (first.errors, first.num_applied.tolist()) == ({}, [1, 1])
    assert second.y[1].tolist() == [6, 7]
    assert np.isnan(second.y[0]).all()
    assert (list(second.errors), second.num_applied.tolist()) == ([0], [0, 1])


def test_predictions_are_exact_floats(admission):
    """A step's Python floats are the float32 values to the last bit."""
    one = step(3, [9, 9], 1)
    found = columns_of.gather([one], [], admission, 2)
    y = np.array([[[0.1, 1e-42]]], np.float32)
    columns_of.scatter(found, y, np.array([True]))
    assert np.array(one.y, np.float32).tobytes() == y.tobytes()
    assert all(type(value) is float for value in one.y)


def test_rows_not_applied_are_errors_of_their_own(admission):
    """A row without a finite prediction fails its step or entry, named, and leaves the others."""
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
