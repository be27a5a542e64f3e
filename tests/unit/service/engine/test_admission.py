"""The step protocol: next, repeat, conflict, gap, forgotten; times; blocks known in part."""

import json

import numpy as np
import pytest

from service.engine import admission as admission_module
from service.engine.admission import Admission
from service.engine.progress import TIME_ABSENT
from service.engine.scheduler import Piece
from service.engine.work import INDEX_NEXT, Step
from service.errors import Reason, StreamcellError
from service.runtime.manifest import parse
from tests import fakes
from tests.fakes import INTERVAL_NS, block_of, manifest_of

SLOT = 2


class House:
    """One session on a model, its steps applied by prediction = -input."""

    def __init__(self, uses_time=False):
        about = parse(json.dumps(manifest_of(uses_time=uses_time)))
        self.model = fakes.recurrence(uses_time)
        self.sessions = fakes.session_table(4, 2, 2, 3)
        self.sessions.open("k", SLOT, 0)
        self.admission = Admission(self.sessions, about)

    def step(self, x, index=INDEX_NEXT, time=TIME_ABSENT, generation=0):
        """Returns a step that was admitted or answered; raises if it was refused."""
        work = Step(
            SLOT,
            generation,
            np.array(x, "<f4").tobytes(),
            time=time,
            index=index,
            arrived_ns=0,
            on_done=lambda _: None,
        )
        if self.admission.admit_step(work):
            row = np.array(x, np.float32).reshape(1, 1, 2)
            given, run = (np.array([[time]], np.int64) for time in (work.time, work.run_time))
            self.sessions.apply(fakes.applied([SLOT], [1], row, given_times=given, times=run, y=-row), 0)
        return work

    def refused(self, *args, **kwargs):
        """Returns the error of a step that is refused."""
        with pytest.raises(StreamcellError) as caught:
            self.step(*args, **kwargs)
        return caught.value

    def group(self, x, index=INDEX_NEXT, times=None, wants_replies=True, generation=0):
        """Returns a block of one entry, checked."""
        block = block_of(
            self.model,
            [SLOT],
            [x],
            generations=[generation],
            indexes=[index],
            times=times,
            wants_replies=wants_replies,
        )
        self.admission.admit_group(Piece(block, np.array([0]), 0, len(block.x), begins_group=True))
        return block

    @property
    def next_step(self):
        """Where the session stands."""
        return int(self.sessions.progress.next_step[SLOT])


@pytest.fixture
def house():
    """A session on a model without time, of which the steps [0, 0] .. [4, 4] are applied; three are kept."""
    house = House()
    for number in range(5):
        house.step([number, number])
    return house


@pytest.fixture
def timed():
    """A session on a model with time, of which steps at 0 s and 1 s are applied, the second by default."""
    house = House(uses_time=True)
    house.step([0, 0], time=50 * INTERVAL_NS)
    house.step([1, 1])
    return house


@pytest.mark.parametrize("index", [INDEX_NEXT, 5], ids=["absent", "given"])
def test_the_next_step_is_admitted(house, index):
    """A step without an index, or with the one that is next, gets the session's next."""
    work = house.step([9, 9], index)
    assert (work.step_index, work.is_repeat, house.next_step) == (5, False, 6)


@pytest.mark.parametrize("index", [2, 3, 4])
def test_a_repeated_step_gets_its_earlier_reply(house, index):
    """A step applied before is answered as it was then, and moves nothing."""
    work = house.step([index, index], index)
    assert (work.step_index, work.is_repeat, work.y) == (index, True, [-index, -index])
    assert house.next_step == 5


def test_another_input_under_an_applied_index_is_a_conflict(house):
    """The index at fault is told; nothing moves."""
    error = house.refused([4, 4.5], 4)
    assert (error.reason, error.metadata) == (Reason.STEP_CONFLICT, {"step_index": "4"})
    assert house.next_step == 5


@pytest.mark.parametrize("index", [6, 7, 2**64 - 1])
def test_a_step_ahead_of_the_next_is_a_gap(house, index):
    """The index expected is told; nothing moves."""
    error = house.refused([9, 9], index)
    assert (error.reason, error.metadata) == (Reason.STEP_GAP, {"expected_step_index": "5"})
    assert house.next_step == 5


@pytest.mark.parametrize("index", [0, 1])
def test_a_reply_no_longer_kept_is_forgotten(house, index):
    """A repeat from too long ago says so, and where to go on."""
    error = house.refused([index, index], index)
    assert (error.reason, error.metadata) == (Reason.STEP_FORGOTTEN, {"expected_step_index": "5"})


def test_a_session_that_ended_while_the_step_waited_is_not_found(house):
    """A step of an earlier generation of its slot is refused, whoever has the slot now."""
    house.sessions.close(SLOT)
    house.sessions.open("another's", SLOT, 0)
    assert house.refused([0, 0]).reason is Reason.SESSION_NOT_FOUND
    assert house.next_step == 0


def test_after_a_restart_earlier_replies_are_no_repeats(house):
    """Step 0 after a reset is the next step, not a repeat or conflict; later indexes are gaps."""
    house.sessions.progress.restart(SLOT)
    assert house.refused([3, 3], 3).reason is Reason.STEP_GAP
    work = house.step([7, 7], 0)
    assert (work.is_repeat, work.step_index) == (False, 0)


# -- Times -------------------------------------------------------------------------------------------


def test_times_are_ignored_by_models_without(house):
    """A repeat with another time is the same step; the model gets 0."""
    work = house.step([9, 9], time=123)
    assert work.run_time == 0
    assert house.step([9, 9], 5, time=456).is_repeat
    assert house.sessions.progress.last_time[SLOT] == 0


def test_a_time_left_out_follows_the_last_one(timed):
    """Without a time the step is one interval after the one before."""
    assert timed.sessions.progress.last_time[SLOT] == 51 * INTERVAL_NS
    work = timed.step([2, 2])
    assert work.run_time == 52 * INTERVAL_NS


def test_a_time_given_is_taken(timed):
    """A given time counts, also one that does not follow."""
    assert timed.step([2, 2], time=7).run_time == 7
    assert timed.sessions.progress.last_time[SLOT] == 7


def test_the_first_step_must_give_its_time():
    """Without one it is refused by the field's name, and the session stands at its start."""
    house = House(uses_time=True)
    error = house.refused([0, 0])
    assert (error.reason, error.metadata["field"]) == (Reason.INVALID_ARGUMENT, "time_ns")
    assert house.next_step == 0


def test_a_repeat_must_repeat_its_time(timed):
    """A time that differs, or is given where it was left out, is another input."""
    assert timed.step([0, 0], 0, time=50 * INTERVAL_NS).is_repeat
    assert timed.step([1, 1], 1).is_repeat
    assert timed.refused([0, 0], 0, time=49 * INTERVAL_NS).reason is Reason.STEP_CONFLICT
    assert timed.refused([0, 0], 0).reason is Reason.STEP_CONFLICT
    assert timed.refused([1, 1], 1, time=51 * INTERVAL_NS).reason is Reason.STEP_CONFLICT


# -- Blocks ------------------------------------------------------------------------------------------


def left(block):
    """Returns where the rows left to run begin, and how many they are."""
    return int(block.starts[0]), int(block.totals[0])


@pytest.mark.parametrize("index", [INDEX_NEXT, 5], ids=["absent", "given"])
def test_a_block_from_the_next_step_runs_whole(house, index):
    """All its rows are left to run, from the session's next index."""
    block = house.group([[5, 5], [6, 6]], index)
    assert (left(block), block.step_indexes.tolist(), block.errors) == ((0, 2), [5], {})


def test_a_block_known_in_part_runs_the_rest(house):
    """Rows applied before have their earlier replies, the others are left to run from there."""
    block = house.group([[3, 3], [4, 4], [5, 5]], 3)
    assert (left(block), block.step_indexes.tolist()) == ((2, 1), [3])
    assert block.y[:2].tolist() == [[-3, -3], [-4, -4]]
    assert np.isnan(block.y[2]).all()


def test_a_block_known_as_a_whole_runs_nothing(house):
    """A frame sent again is answered from the replies kept."""
    block = house.group([[2, 2], [3, 3]], 2)
    assert (left(block)[1], block.errors) == (0, {})
    assert block.y.tolist() == [[-2, -2], [-3, -3]]


def test_a_block_that_conflicts_is_refused_as_a_whole(house):
    """One row with another input fails the entry; nothing of it is left to run."""
    block = house.group([[3, 3], [4, 9], [5, 5]], 3)
    assert block.errors[0].reason is Reason.STEP_CONFLICT
    assert block.errors[0].metadata["step_index"] == "4"
    assert (left(block)[1], block.step_indexes.tolist()) == (0, [0])


def test_a_block_ahead_of_the_next_is_a_gap(house):
    """As for a single step."""
    block = house.group([[9, 9]], 6)
    assert (block.errors[0].reason, left(block)[1]) == (Reason.STEP_GAP, 0)


def test_a_frame_whose_replies_are_forgotten_is_refused(house):
    """Where every row's reply is wanted and one is no longer kept, the entry fails."""
    block = house.group([[1, 1], [2, 2], [3, 3]], 1)
    assert block.errors[0].reason is Reason.STEP_FORGOTTEN
    assert block.errors[0].metadata == {"expected_step_index": "5"}


def test_a_prime_needs_only_its_last_reply(house):
    """History sent again is checked against what is kept and skipped, with the last reply if that is kept."""
    known = house.group([[0, 0], [1, 1], [2, 2]], 0, wants_replies=False)
    assert (known.errors, left(known)[1], known.y[2].tolist()) == ({}, 0, [-2, -2])
    on = house.group([[number] * 2 for number in range(7)], 0, wants_replies=False)
    assert (on.errors, left(on)) == ({}, (5, 2))
    forgotten = house.group([[0, 0], [1, 1]], 0, wants_replies=False)
    assert forgotten.errors[0].reason is Reason.STEP_FORGOTTEN
    other = house.group([[0, 0], [1, 1], [2, 7]], 0, wants_replies=False)
    assert other.errors[0].reason is Reason.STEP_CONFLICT


def test_a_block_of_an_ended_session_is_refused(house):
    """As for a single step."""
    house.sessions.close(SLOT)
    assert house.group([[5, 5]]).errors[0].reason is Reason.SESSION_NOT_FOUND


def test_a_refused_entry_leaves_the_others_alone(house):
    """Entries of one block are judged each on its own."""
    house.sessions.open("other", 1, 0)
    block = block_of(house.model, [SLOT, 1], [[[9, 9]], [[1, 1]]], indexes=[7, 0])
    house.admission.admit_group(Piece(block, np.array([0, 1]), 0, 1, begins_group=True))
    assert list(block.errors) == [0]
    assert block.totals.tolist() == [0, 1]


def test_only_the_groups_entries_are_checked(house):
    """Entries of later groups are judged when their turn has come."""
    house.sessions.open("other", 1, 0)
    block = block_of(house.model, [SLOT, 1], [[[9, 9]], [[1, 1]]], generations=[0, 5])
    house.admission.admit_group(Piece(block, np.array([0]), 0, 1, begins_group=True))
    assert block.errors == {}


def test_the_first_block_of_a_model_with_time_must_give_times():
    """A session's first rows without times are refused by the column's name."""
    block = House(uses_time=True).group([[0, 0], [1, 1]])
    assert block.errors[0].metadata["field"] == "time_raw"


def test_rows_without_times_follow_the_last_one(timed):
    """The model gets one interval more for each row, prints remember that none was given."""
    block = timed.group([[2, 2], [3, 3], [4, 4]])
    rows = np.array([[0, 1, 2]])
    run = timed.admission.run_times(block, np.array([0]), rows)
    assert run.tolist() == [[52 * INTERVAL_NS, 53 * INTERVAL_NS, 54 * INTERVAL_NS]]
    assert (timed.admission.given_times(block, rows) == TIME_ABSENT).all()


def test_rows_with_times_keep_them(timed):
    """Given times go to the model and into the prints."""
    block = timed.group([[2, 2], [3, 3]], times=[7, 9])
    rows = np.array([[0, 1]])
    assert timed.admission.run_times(block, np.array([0]), rows).tolist() == [[7, 9]]
    assert timed.admission.given_times(block, rows).tolist() == [[7, 9]]


def test_rows_of_models_without_time_have_time_zero(house):
    """Given times are ignored, so that a repeat with others is the same."""
    block = house.group([[5, 5], [6, 6]], times=[7, 9])
    rows = np.array([[0, 1]])
    assert house.admission.run_times(block, np.array([0]), rows).tolist() == [[0, 0]]
    assert house.admission.given_times(block, rows).tolist() == [[0, 0]]


def test_a_step_may_be_repeated_within_a_block_and_the_other_way_round(timed):
    """Step and frame print their inputs alike, with a time and without."""
    block = timed.group([[1, 1]], 1)
    assert (block.errors, left(block)[1], block.y.tolist()) == ({}, 0, [[-1, -1]])
    again = timed.group([[0, 0]], 0, times=[50 * INTERVAL_NS])
    assert (again.errors, left(again)[1]) == ({}, 0)


def test_the_missing_time_is_one_error():
    """The servicers' early check says what admission would."""
    assert admission_module.first_time_missing("time_ns").message == House(True).refused([0, 0]).message
