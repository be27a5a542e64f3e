"""The step protocol: next step, repeat, conflict, gap, forgotten reply; times; partly applied blocks."""

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


class AdmissionRig:
    """One session, and work on it that is admitted; an applied step predicts its input, negated."""

    def __init__(self, uses_time=False, **changes):
        about = parse(json.dumps(manifest_of(uses_time=uses_time)))
        self.model = fakes.recurrence(uses_time)
        self.sessions = fakes.session_table(4, 2, 2, 3)
        self.sessions.open("k", SLOT, 0)
        self.admission = Admission(self.sessions, about, **changes)

    def step(self, x, index=INDEX_NEXT, time=TIME_ABSENT, generation=0):
        """Returns a step that was admitted and applied, or is a repeat; raises if the step is refused."""
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
        """Returns the error of a step, which must be refused."""
        with pytest.raises(StreamcellError) as caught:
            self.step(*args, **kwargs)
        return caught.value

    def group(self, x, index=INDEX_NEXT, times=None, wants_replies=True, generation=0):
        """Returns a block of one entry after its check."""
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
        """The index of the session's next step."""
        return int(self.sessions.progress.next_step[SLOT])


@pytest.fixture
def plain():
    """A session on a model without time, with steps [0, 0] .. [4, 4] applied and three replies remembered."""
    session = AdmissionRig()
    for number in range(5):
        session.step([number, number])
    return session


@pytest.fixture
def timed():
    """A session on a model with time, with steps at 50 s and 51 s applied, the latter by default."""
    session = AdmissionRig(uses_time=True)
    session.step([0, 0], time=50 * INTERVAL_NS)
    session.step([1, 1])
    return session


class TestSteps:
    """Single steps: the next one, repeats, conflicts, gaps."""

    @pytest.mark.parametrize("index", [INDEX_NEXT, 5], ids=["absent", "given"])
    def test_the_next_step_is_admitted(self, plain, index):
        """A step without an index, or with the next one, is the session's next step."""
        work = plain.step([9, 9], index)
        assert (work.step_index, work.is_repeat, plain.next_step) == (5, False, 6)

    @pytest.mark.parametrize("index", [2, 3, 4])
    def test_a_repeated_step_gets_its_earlier_reply(self, plain, index):
        """A repeat gets the earlier reply and moves nothing."""
        work = plain.step([index, index], index)
        assert (work.step_index, work.is_repeat, work.y) == (index, True, [-index, -index])
        assert plain.next_step == 5

    def test_another_input_under_an_applied_index_is_a_conflict(self, plain):
        """The error has the index at fault; nothing moves."""
        error = plain.refused([4, 4.5], 4)
        assert (error.reason, error.metadata) == (Reason.STEP_CONFLICT, {"step_index": "4"})
        assert plain.next_step == 5

    @pytest.mark.parametrize("index", [6, 7, 2**64 - 1])
    def test_a_step_ahead_of_the_next_is_a_gap(self, plain, index):
        """The error has the expected index; nothing moves."""
        error = plain.refused([9, 9], index)
        assert (error.reason, error.metadata) == (Reason.STEP_GAP, {"expected_step_index": "5"})
        assert plain.next_step == 5

    @pytest.mark.parametrize("index", [0, 1])
    def test_a_reply_no_longer_kept_is_forgotten(self, plain, index):
        """The error for a repeat from too long ago has the index to go on with."""
        error = plain.refused([index, index], index)
        assert (error.reason, error.metadata) == (Reason.STEP_FORGOTTEN, {"expected_step_index": "5"})

    def test_a_session_that_ended_while_the_step_waited_is_not_found(self, plain):
        """A step of an earlier generation is refused, also if the slot has another session."""
        plain.sessions.close(SLOT)
        plain.sessions.open("another's", SLOT, 0)
        assert plain.refused([0, 0]).reason is Reason.SESSION_NOT_FOUND
        assert plain.next_step == 0

    def test_after_a_restart_earlier_replies_are_no_repeats(self, plain):
        """After a reset step 0 is the next step, and later indexes are gaps."""
        plain.sessions.progress.restart(SLOT)
        assert plain.refused([3, 3], 3).reason is Reason.STEP_GAP
        work = plain.step([7, 7], 0)
        assert (work.is_repeat, work.step_index) == (False, 0)


class TestTimesOfSteps:
    """The times of single steps, given or not."""

    def test_times_are_ignored_by_models_without(self, plain):
        """A repeat with another time is the same step; the model gets time 0."""
        work = plain.step([9, 9], time=123)
        assert work.run_time == 0
        assert plain.step([9, 9], 5, time=456).is_repeat
        assert plain.sessions.progress.last_time[SLOT] == 0

    def test_a_time_left_out_follows_the_last_one(self, timed):
        """A step without a time is one interval after the step before."""
        assert timed.sessions.progress.last_time[SLOT] == 51 * INTERVAL_NS
        work = timed.step([2, 2])
        assert work.run_time == 52 * INTERVAL_NS

    def test_a_time_given_is_taken(self, timed):
        """A given time counts, also one that does not follow by the interval."""
        later = 51 * INTERVAL_NS + 7
        assert timed.step([2, 2], time=later).run_time == later
        assert timed.sessions.progress.last_time[SLOT] == later

    @pytest.mark.parametrize("time", [51 * INTERVAL_NS, 51 * INTERVAL_NS - 1, -1])
    def test_a_time_that_is_not_later_is_refused(self, timed, time):
        """A step that was sent twice would be applied twice; both times are named."""
        error = timed.refused([2, 2], time=time)
        assert (error.reason, error.metadata["field"]) == (Reason.INVALID_ARGUMENT, "time_ns")
        assert f"{time} is not later than {51 * INTERVAL_NS}" in error.message
        assert timed.next_step == 2
        assert timed.sessions.progress.last_time[SLOT] == 51 * INTERVAL_NS
        assert timed.step([2, 2], time=51 * INTERVAL_NS + 1).step_index == 2

    def test_times_may_fall_where_that_is_allowed(self):
        """With times_must_rise off, any time is taken."""
        free = AdmissionRig(uses_time=True, times_must_rise=False)
        for time in (5, 5, -9):
            assert free.step([0, 0], time=time).run_time == time
        assert free.group([[1, 1], [2, 2]], times=np.array([-10, -10])).errors == {}

    def test_the_first_step_must_give_its_time(self):
        """A first step without a time is refused, with the field's name; the session stays at its start."""
        plain = AdmissionRig(uses_time=True)
        error = plain.refused([0, 0])
        assert (error.reason, error.metadata["field"]) == (Reason.INVALID_ARGUMENT, "time_ns")
        assert plain.next_step == 0

    def test_a_repeat_must_repeat_its_time(self, timed):
        """Another time, or a time where none was given, is another input."""
        assert timed.step([0, 0], 0, time=50 * INTERVAL_NS).is_repeat
        assert timed.step([1, 1], 1).is_repeat
        assert timed.refused([0, 0], 0, time=49 * INTERVAL_NS).reason is Reason.STEP_CONFLICT
        assert timed.refused([0, 0], 0).reason is Reason.STEP_CONFLICT
        assert timed.refused([1, 1], 1, time=51 * INTERVAL_NS).reason is Reason.STEP_CONFLICT

    def test_the_missing_time_is_one_error(self):
        """The servicers' early check raises the same error as admission."""
        assert (
            admission_module.first_time_missing("time_ns").message
            == AdmissionRig(True).refused([0, 0]).message
        )


def left(block):
    """Returns the first row left to run, and how many rows are left."""
    return int(block.starts[0]), int(block.totals[0])


class TestBlocks:
    """Blocks, of which any rows may have been applied before."""

    @pytest.mark.parametrize("index", [INDEX_NEXT, 5], ids=["absent", "given"])
    def test_a_block_from_the_next_step_runs_whole(self, plain, index):
        """All rows are left to run, from the session's next index."""
        block = plain.group([[5, 5], [6, 6]], index)
        assert (left(block), block.step_indexes.tolist(), block.errors) == ((0, 2), [5], {})

    def test_a_block_known_in_part_runs_the_rest(self, plain):
        """Rows applied before get their earlier replies, and the rows after them are left to run."""
        block = plain.group([[3, 3], [4, 4], [5, 5]], 3)
        assert (left(block), block.step_indexes.tolist()) == ((2, 1), [3])
        assert block.y[:2].tolist() == [[-3, -3], [-4, -4]]
        assert np.isnan(block.y[2]).all()

    def test_a_block_known_as_a_whole_runs_nothing(self, plain):
        """A frame sent again gets the remembered replies."""
        block = plain.group([[2, 2], [3, 3]], 2)
        assert (left(block)[1], block.errors) == (0, {})
        assert block.y.tolist() == [[-2, -2], [-3, -3]]

    def test_a_block_that_conflicts_is_refused_as_a_whole(self, plain):
        """One row with another input fails the entry, and no row is left to run."""
        block = plain.group([[3, 3], [4, 9], [5, 5]], 3)
        assert block.errors[0].reason is Reason.STEP_CONFLICT
        assert block.errors[0].metadata["step_index"] == "4"
        assert (left(block)[1], block.step_indexes.tolist()) == (0, [0])

    def test_a_block_ahead_of_the_next_is_a_gap(self, plain):
        """An entry whose first index is past the next one is refused."""
        block = plain.group([[9, 9]], 6)
        assert (block.errors[0].reason, left(block)[1]) == (Reason.STEP_GAP, 0)

    def test_a_frame_whose_replies_are_forgotten_is_refused(self, plain):
        """An entry fails if every row's reply is wanted and one is no longer remembered."""
        block = plain.group([[1, 1], [2, 2], [3, 3]], 1)
        assert block.errors[0].reason is Reason.STEP_FORGOTTEN
        assert block.errors[0].metadata == {"expected_step_index": "5"}

    def test_a_prime_needs_only_its_last_reply(self, plain):
        """Repeated history is checked as far as replies are remembered; its last reply is answered."""
        known = plain.group([[0, 0], [1, 1], [2, 2]], 0, wants_replies=False)
        assert (known.errors, left(known)[1], known.y[2].tolist()) == ({}, 0, [-2, -2])
        on = plain.group([[number] * 2 for number in range(7)], 0, wants_replies=False)
        assert (on.errors, left(on)) == ({}, (5, 2))
        forgotten = plain.group([[0, 0], [1, 1]], 0, wants_replies=False)
        assert forgotten.errors[0].reason is Reason.STEP_FORGOTTEN
        other = plain.group([[0, 0], [1, 1], [2, 7]], 0, wants_replies=False)
        assert other.errors[0].reason is Reason.STEP_CONFLICT

    def test_a_block_of_an_ended_session_is_refused(self, plain):
        """An entry of an earlier generation is refused."""
        plain.sessions.close(SLOT)
        assert plain.group([[5, 5]]).errors[0].reason is Reason.SESSION_NOT_FOUND

    @pytest.mark.parametrize(
        ("times", "before", "after"),
        [([51, 52, 53], 51, 51), ([52, 54, 53], 54, 53), ([52, 53, 53], 53, 53), ([50, 52, 53], 51, 50)],
    )
    def test_times_of_a_block_must_rise(self, timed, times, before, after):
        """From the session's last time on; the entry fails as a whole, with the two times at fault."""
        block = timed.group([[2, 2]] * 3, times=np.array(times) * INTERVAL_NS)
        assert block.errors[0].metadata["field"] == "time_raw"
        assert f"{after * INTERVAL_NS} is not later than {before * INTERVAL_NS}" in block.errors[0].message
        assert left(block)[1] == 0

    def test_times_of_repeated_rows_are_not_compared_with_the_last(self, timed):
        """A block known in part gets the earlier replies; only the rows that are left must be later."""
        times = np.array([50, 51, 52]) * INTERVAL_NS
        free = AdmissionRig(uses_time=True)
        for number, time in enumerate(times[:2].tolist()):
            free.step([number, number], time=time)
        block = free.group([[0, 0], [1, 1], [2, 2]], 0, times=times)
        assert (block.errors, left(block)) == ({}, (2, 1))
        times[2] = times[1]
        assert free.group([[0, 0], [1, 1], [2, 2]], 0, times=times).errors[0].metadata["field"] == "time_raw"

    def test_times_of_different_entries_are_not_compared(self):
        """Each session has its own time; the first times of a session may be any."""
        rig = AdmissionRig(uses_time=True)
        rig.sessions.open("other", 1, 0)
        times = np.array([7, 8, 3, 4])
        block = block_of(rig.model, [SLOT, 1], [[[9, 9]] * 2, [[1, 1]] * 2], times=times)
        rig.admission.admit_group(Piece(block, np.array([0, 1]), 0, 2, begins_group=True))
        assert block.errors == {}
        times = np.array([7, 8, 4, 3])
        block = block_of(rig.model, [SLOT, 1], [[[9, 9]] * 2, [[1, 1]] * 2], times=times)
        rig.admission.admit_group(Piece(block, np.array([0, 1]), 0, 2, begins_group=True))
        assert list(block.errors) == [1]

    def test_a_refused_entry_leaves_the_others_alone(self, plain):
        """Each entry of a block is checked by itself."""
        plain.sessions.open("other", 1, 0)
        block = block_of(plain.model, [SLOT, 1], [[[9, 9]], [[1, 1]]], indexes=[7, 0])
        plain.admission.admit_group(Piece(block, np.array([0, 1]), 0, 1, begins_group=True))
        assert list(block.errors) == [0]
        assert block.totals.tolist() == [0, 1]

    def test_only_the_groups_entries_are_checked(self, plain):
        """Entries of later groups are checked when their group begins."""
        plain.sessions.open("other", 1, 0)
        block = block_of(plain.model, [SLOT, 1], [[[9, 9]], [[1, 1]]], generations=[0, 5])
        plain.admission.admit_group(Piece(block, np.array([0]), 0, 1, begins_group=True))
        assert block.errors == {}

    def test_a_step_may_be_repeated_within_a_block_and_the_other_way_round(self, timed):
        """Steps and blocks have the same fingerprints for the same input, with a time and without."""
        block = timed.group([[1, 1]], 1)
        assert (block.errors, left(block)[1], block.y.tolist()) == ({}, 0, [[-1, -1]])
        again = timed.group([[0, 0]], 0, times=[50 * INTERVAL_NS])
        assert (again.errors, left(again)[1]) == ({}, 0)


class TestTimesOfBlocks:
    """The times of a block's rows, given or not."""

    def test_the_first_block_of_a_model_with_time_must_give_times(self):
        """A session's first rows without times are refused, with the column's name."""
        block = AdmissionRig(uses_time=True).group([[0, 0], [1, 1]])
        assert block.errors[0].metadata["field"] == "time_raw"

    def test_rows_without_times_follow_the_last_one(self, timed):
        """The model gets one interval more for each row; fingerprints have the absent time."""
        block = timed.group([[2, 2], [3, 3], [4, 4]])
        rows = np.array([[0, 1, 2]])
        run = timed.admission.run_times(block, np.array([0]), rows)
        assert run.tolist() == [[52 * INTERVAL_NS, 53 * INTERVAL_NS, 54 * INTERVAL_NS]]
        assert (timed.admission.given_times(block, rows) == TIME_ABSENT).all()

    def test_rows_with_times_keep_them(self, timed):
        """The model and the fingerprints get the given times."""
        block = timed.group([[2, 2], [3, 3]], times=[7, 9])
        rows = np.array([[0, 1]])
        assert timed.admission.run_times(block, np.array([0]), rows).tolist() == [[7, 9]]
        assert timed.admission.given_times(block, rows).tolist() == [[7, 9]]

    def test_rows_of_models_without_time_have_time_zero(self, plain):
        """Given times are ignored, so that a repeat with other times is the same step."""
        block = plain.group([[5, 5], [6, 6]], times=[7, 9])
        rows = np.array([[0, 1]])
        assert plain.admission.run_times(block, np.array([0]), rows).tolist() == [[0, 0]]
        assert plain.admission.given_times(block, rows).tolist() == [[0, 0]]
