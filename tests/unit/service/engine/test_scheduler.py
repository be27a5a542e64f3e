"""The scheduler: lanes keep each session's order, batches are bounded, long inputs leave room for others."""

import pytest

from service.engine.scheduler import Lanes, Scheduler
from service.engine.work import Control, Phase
from service.errors import Reason, StreamcellError
from tests.fakes.work import block_with, nothing, step_of


def control(slot):
    """Returns a control of a session."""
    return Control(slot, 0, nothing, arrived_ns=0, on_done=nothing)


def scheduler(queue=1000, batch=8, piece=4):
    """Returns a scheduler of 32 slots."""
    return Scheduler(32, max_queue_steps=queue, max_batch_steps=batch, max_piece_steps=piece)


def submit(policy, *works):
    """Submits work in order."""
    for work in works:
        policy.submit(work)


def finish(policy, batch):
    """Ends a batch as the engine does."""
    for work in batch.controls:
        policy.finish(work)
    policy.finish_steps(batch.steps)
    for piece in batch.pieces:
        if not policy.advance(piece.block):
            policy.finish(piece.block)


def shape(batch):
    """Returns entries, offset, length and `begins_group` of each piece of a batch."""
    return [
        (piece.entries.tolist(), piece.offset, piece.length, piece.begins_group) for piece in batch.pieces
    ]


def rounds(policy, block_of_interest):
    """Runs batches until a block is done; returns the shape of the block's piece in each batch."""
    found = []
    while policy.has_ready:
        batch = policy.schedule()
        found += [
            shape(batch)[at] for at, piece in enumerate(batch.pieces) if piece.block is block_of_interest
        ]
        finish(policy, batch)
    return found


class TestLanes:
    """The order of work on each session."""

    def test_the_first_in_a_lane_may_run_and_the_next_waits(self):
        """The work of a lane runs one at a time, in order."""
        lanes, first, second, third = Lanes(4), step_of(1), control(1), step_of(1)
        assert [lanes.enter(work) for work in (first, second, third)] == [True, False, False]
        assert lanes.leave(first) == [second]
        assert lanes.leave(second) == [third]
        assert lanes.is_taken(1)
        assert lanes.leave(third) == []
        assert not lanes.is_taken(1)

    def test_lanes_of_other_sessions_are_free(self):
        """Work on one session delays no other session."""
        lanes = Lanes(4)
        assert lanes.enter(step_of(0))
        assert lanes.enter(step_of(1))
        assert [lanes.is_taken(slot) for slot in range(4)] == [True, True, False, False]

    def test_a_block_waits_in_all_its_lanes_and_blocks_all_of_them(self):
        """A block runs once it is first in every lane, and later work of any of these lanes waits for it."""
        lanes, one, three = Lanes(4), step_of(1), step_of(3)
        assert lanes.enter(one)
        assert lanes.enter(three)
        both = block_with({0: 1, 1: 1, 3: 1})
        assert not lanes.enter(both)
        later = [step_of(0), step_of(1)]
        assert [lanes.enter(work) for work in later] == [False, False]
        assert lanes.leave(three) == []
        assert lanes.leave(one) == [both]
        assert lanes.leave(both) == later
        assert lanes.is_taken(0)
        assert not lanes.is_taken(3)

    def test_a_block_alone_leaves_its_lanes_free(self):
        """After a block its lanes are free if no work waits in them."""
        lanes, alone = Lanes(4), block_with({0: 1, 2: 1})
        assert lanes.enter(alone)
        assert lanes.leave(alone) == []
        assert not any(lanes.is_taken(slot) for slot in range(4))

    def test_two_blocks_in_opposite_order_do_not_wait_for_each_other(self):
        """A block enters its lanes at once, so blocks over the same sessions cannot deadlock."""
        lanes, first, second = Lanes(4), block_with({0: 1, 1: 1}), block_with({1: 1, 0: 1})
        assert lanes.enter(first)
        assert not lanes.enter(second)
        assert lanes.leave(first) == [second]

    def test_steps_leave_their_lanes_together(self):
        """Lanes without waiting work are free; the others pass on to their next work, in order."""
        lanes, steps = Lanes(5), [step_of(slot) for slot in (3, 0, 1)]
        both, behind, last = block_with({0: 1, 1: 1}), step_of(3), step_of(1)
        assert [lanes.enter(work) for work in [*steps, behind, both, last]] == [True] * 3 + [False] * 3
        assert lanes.leave_all(steps) == [behind, both]
        assert [lanes.is_taken(slot) for slot in range(5)] == [True, True, False, True, False]
        assert lanes.leave(both) == [last]
        assert lanes.leave_all([behind, last]) == []
        assert not any(lanes.is_taken(slot) for slot in range(5))


class TestBatches:
    """Which work is in the next batch."""

    def test_whatever_is_ready_is_the_batch(self):
        """The steps of many sessions run together, without a wait for more."""
        policy, works = scheduler(), [step_of(slot) for slot in range(3)]
        submit(policy, *works)
        batch = policy.schedule()
        assert batch.steps == works
        assert [work.phase for work in works] == [Phase.STARTED] * 3
        assert not policy.has_ready

    def test_two_steps_of_one_session_never_share_a_batch(self):
        """The second step of a session is in a batch after the first one has finished."""
        policy, first, second, other = scheduler(), step_of(1), step_of(1), step_of(2)
        submit(policy, first, second, other)
        batch = policy.schedule()
        assert batch.steps == [first, other]
        assert policy.schedule().steps == []
        finish(policy, batch)
        assert policy.schedule().steps == [second]

    def test_a_step_behind_a_block_of_its_session_waits_for_all_of_the_block(self):
        """A step after a long input of the same session runs after the last piece of the input."""
        policy, long, after, other = scheduler(piece=2), block_with({1: 5}), step_of(1), step_of(2)
        submit(policy, long, after, other)
        order = []
        while policy.has_ready:
            batch = policy.schedule()
            order.append((len(batch.steps), shape(batch)))
            finish(policy, batch)
        assert order == [
            (1, [([0], 0, 2, True)]), (0, [([0], 2, 2, False)]), (0, [([0], 4, 1, False)]), (1, []),
        ]  # fmt: skip
        assert after.phase is Phase.STARTED

    def test_single_steps_get_in_between_the_pieces_of_a_long_input(self):
        """A step that arrives while a long input runs is in the very next batch."""
        policy, long = scheduler(piece=4), block_with({0: 40})
        policy.submit(long)
        for round_number in range(10):
            late = step_of(1)
            policy.submit(late)
            batch = policy.schedule()
            assert batch.steps == [late]
            assert shape(batch) == [([0], 4 * round_number, 4, round_number == 0)]
            finish(policy, batch)
        assert not policy.has_ready

    def test_steps_beyond_the_largest_batch_go_into_the_next(self):
        """A batch has at most max_batch_steps single steps, first come, first served."""
        policy, works = scheduler(batch=8), [step_of(slot) for slot in range(20)]
        submit(policy, *works)
        sizes = []
        served = []
        while policy.has_ready:
            batch = policy.schedule()
            sizes.append(len(batch.steps))
            served += batch.steps
            finish(policy, batch)
        assert (sizes, served) == ([8, 8, 4], works)

    def test_steps_and_frames_share_a_batch_by_halves(self):
        """Steps and frames get half of the room each, and the room that the others leave."""
        policy = scheduler(batch=8)
        steps, frame = [step_of(slot) for slot in range(20)], block_with(dict.fromkeys(range(20, 30), 1))
        submit(policy, *steps, frame)
        sizes = []
        while policy.has_ready:
            batch = policy.schedule()
            sizes.append((len(batch.steps), sum(len(piece.entries) for piece in batch.pieces)))
            finish(policy, batch)
        assert sizes == [(4, 4), (4, 4), (6, 2), (6, 0)]

    def test_a_long_input_takes_no_room_from_steps_and_frames(self):
        """A long input has a cell call of its own, so both calls may be full in one iteration."""
        policy, long = scheduler(batch=8, piece=4), block_with({30: 40, 31: 40})
        steps, frame = [step_of(slot) for slot in range(4)], block_with(dict.fromkeys(range(20, 24), 1))
        submit(policy, long, *steps, frame)
        batch = policy.schedule()
        assert batch.steps == steps
        assert [(piece.block, len(piece.entries), piece.length) for piece in batch.pieces] == [
            (long, 2, 4), (frame, 4, 1),
        ]  # fmt: skip

    def test_a_block_without_room_delays_no_other_block(self):
        """A block that does not fit waits at the front, while later blocks that fit run."""
        policy = scheduler(batch=4, piece=4)
        first, second = block_with(dict.fromkeys(range(4), 1)), block_with(dict.fromkeys(range(4, 8), 1))
        wide, long, longer = (
            block_with(dict.fromkeys(range(8, 12), 3)),
            block_with({12: 8}),
            block_with({13: 5}),
        )
        submit(policy, first, second, wide, long)
        batch = policy.schedule()
        assert [piece.block for piece in batch.pieces] == [first, wide]
        finish(policy, batch)
        policy.submit(longer)
        batch = policy.schedule()
        assert [piece.block for piece in batch.pieces] == [second, long]
        finish(policy, batch)
        assert [piece.block for piece in policy.schedule().pieces] == [wide]

    def test_controls_keep_their_place_in_the_lane(self):
        """A control between two steps of a session is in a batch between theirs."""
        policy, works = scheduler(), [step_of(0), control(0), step_of(0)]
        submit(policy, *works)
        order = []
        while policy.has_ready:
            batch = policy.schedule()
            order.append(batch.controls + batch.steps)
            finish(policy, batch)
        assert order == [[work] for work in works]


class TestPieces:
    """How blocks are cut into groups and pieces."""

    def test_a_long_input_is_cut_into_bounded_pieces(self):
        """Eleven steps run in pieces of at most four, end to end."""
        policy, long = scheduler(piece=4), block_with({0: 11})
        policy.submit(long)
        assert rounds(policy, long) == [([0], 0, 4, True), ([0], 4, 4, False), ([0], 8, 3, False)]

    def test_entries_of_different_lengths_drop_out_as_they_end(self):
        """A block goes on with the entries that have rows left."""
        policy, long = scheduler(batch=100, piece=4), block_with({0: 1, 1: 6, 2: 4, 3: 9})
        policy.submit(long)
        assert rounds(policy, long) == [
            ([0, 1, 2, 3], 0, 4, True), ([1, 3], 4, 4, False), ([3], 8, 1, False),
        ]  # fmt: skip

    def test_many_entries_run_in_groups_that_fit_a_batch(self):
        """A block of more sessions than fit a batch runs in groups, each to its last row."""
        policy, wide = scheduler(batch=8, piece=4), block_with(dict.fromkeys(range(20), 2))
        policy.submit(wide)
        found = rounds(policy, wide)
        summary = [(entries[0], entries[-1], *rest) for entries, *rest in found]
        assert summary == [
            (0, 7, 0, 1, True), (0, 7, 1, 1, False),
            (8, 15, 0, 1, True), (8, 15, 1, 1, False),
            (16, 19, 0, 2, True),
        ]  # fmt: skip

    def test_a_piece_of_many_sessions_is_shorter(self):
        """A piece has at most max_batch_steps sessions times time steps."""
        policy, wide = scheduler(batch=8, piece=4), block_with({0: 9, 1: 9, 2: 9})
        policy.submit(wide)
        found = rounds(policy, wide)
        assert [length for _, _, length, _ in found] == [2, 2, 2, 2, 1]
        assert all(len(entries) * length <= 8 for entries, _, length, _ in found)

    def test_blocks_take_turns(self):
        """Long inputs that do not fit into one batch advance in turns."""
        policy, first, second = scheduler(batch=4, piece=4), block_with({0: 8}), block_with({1: 8})
        submit(policy, first, second)
        turns = []
        while policy.has_ready:
            batch = policy.schedule()
            turns.append([piece.block for piece in batch.pieces])
            finish(policy, batch)
        assert turns == [[first], [second], [first], [second]]


class TestWithdrawing:
    """Work that is withdrawn before or while it runs."""

    def test_withdrawn_steps_are_not_scheduled(self):
        """A withdrawn step never runs, and the work behind it is ready at once."""
        policy, gone, behind, other = scheduler(), step_of(0), step_of(0), step_of(1)
        submit(policy, gone, behind, other)
        assert policy.withdraw(gone)
        assert policy.schedule().steps == [other, behind]
        assert policy.num_queued_steps == 2

    @pytest.mark.parametrize(
        "gone", [step_of(0), control(0), block_with({0: 3, 1: 2})], ids=["step", "control", "block"]
    )
    def test_withdrawn_work_that_waits_in_a_lane_is_passed_over(self, gone):
        """Work withdrawn in the middle of a lane never runs and no longer counts."""
        policy, before, behind = scheduler(), step_of(0), step_of(0)
        submit(policy, before, gone, behind)
        assert policy.withdraw(gone)
        ran = []
        while policy.has_ready:
            batch = policy.schedule()
            ran += [*batch.steps, *batch.controls, *batch.pieces]
            finish(policy, batch)
        assert ran == [before, behind]
        assert policy.num_queued_steps == 0
        assert not policy.is_busy(0)
        assert not policy.is_busy(1)

    def test_a_step_in_its_batch_cannot_be_withdrawn(self):
        """A scheduled step cannot be withdrawn; no work can be withdrawn twice."""
        policy, running, waiting = scheduler(), step_of(0), step_of(0)
        submit(policy, running, waiting)
        policy.schedule()
        assert not policy.withdraw(running)
        assert running.phase is Phase.STARTED
        assert policy.withdraw(waiting)
        assert not policy.withdraw(waiting)

    def test_the_rest_of_a_started_block_can_be_withdrawn(self):
        """The rows of a withdrawn long input that are not scheduled yet never run."""
        policy, long, behind = scheduler(piece=4), block_with({0: 40}), step_of(0)
        submit(policy, long, behind)
        batch = policy.schedule()
        assert policy.withdraw(long)
        finish(policy, batch)
        assert policy.schedule().steps == [behind]
        again = block_with({1: 40})
        policy.submit(again)
        finish(policy, policy.schedule())
        assert policy.withdraw(again)
        assert policy.schedule().pieces == []
        assert not policy.has_ready
        assert not policy.is_busy(1)


class TestBounds:
    """The bound of the queue, and busy sessions."""

    def test_a_full_queue_refuses_at_once(self):
        """Work beyond the bound is refused as a whole, with a delay for the retry."""
        policy = scheduler(queue=10)
        policy.submit(block_with({0: 9}))
        policy.submit(step_of(1))
        for work in (step_of(2), block_with({2: 1}), control(2)):
            with pytest.raises(StreamcellError) as caught:
                policy.submit(work)
            assert caught.value.reason is Reason.OVERLOADED
            assert caught.value.retry_delay_seconds > 0
        assert policy.num_queued_steps == 10
        assert not policy.is_busy(2)

    def test_a_queue_has_room_again_as_work_ends(self):
        """Steps count until they are done, not merely until they are scheduled."""
        policy = scheduler(queue=2)
        submit(policy, step_of(0), step_of(1))
        batch = policy.schedule()
        with pytest.raises(StreamcellError):
            policy.submit(step_of(2))
        finish(policy, batch)
        policy.submit(step_of(2))
        assert policy.num_queued_steps == 1

    def test_an_empty_queue_takes_any_message(self):
        """A message larger than the queue is served when no other work is queued."""
        policy = scheduler(queue=5)
        policy.submit(block_with({0: 50}))
        assert policy.num_queued_steps == 50
        with pytest.raises(StreamcellError):
            policy.submit(step_of(1))

    def test_a_session_is_busy_while_its_work_is_queued_or_running(self):
        """A session is busy until its work is finished."""
        policy, only = scheduler(), step_of(3)
        assert not policy.is_busy(3)
        policy.submit(only)
        assert policy.is_busy(3)
        batch = policy.schedule()
        assert policy.is_busy(3)
        finish(policy, batch)
        assert not policy.is_busy(3)


class TestFairTurns:
    """Where callers have principals, each slot in these tests being of the account slot // 8."""

    @staticmethod
    def policy(queue=1000, batch=8, piece=4):
        """A scheduler in which accounts take turns."""
        return Scheduler(
            64,
            max_queue_steps=queue,
            max_batch_steps=batch,
            max_piece_steps=piece,
            account_of=lambda slot: slot // 8,
        )

    def test_accounts_take_turns_in_a_batch(self):
        """Two steps of one account are not kept waiting by the eight of another."""
        policy = self.policy(batch=4)
        works = [step_of(slot) for slot in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)]
        submit(policy, *works)
        assert [work.slot for work in policy.schedule().steps] == [0, 8, 1, 9]
        assert [work.slot for work in policy.schedule().steps] == [2, 3, 4, 5]

    def test_controls_and_blocks_take_turns_too(self):
        """A batch takes controls of as many steps as it may have."""
        policy = self.policy(batch=4)
        controls = [control(slot) for slot in (0, 1, 2, 8)]
        for work in controls[:3]:
            work.num_steps = 3
        submit(policy, *controls)
        assert [work.slot for work in policy.schedule().controls] == [0, 8]
        assert [work.slot for work in policy.schedule().controls] == [1, 2]
        long = [block_with({slot: 8}) for slot in (16, 17, 24)]
        submit(policy, *long)
        assert [piece.block.slots.tolist() for piece in policy.schedule().pieces] == [[16]]
        assert [piece.block.slots.tolist() for piece in policy.schedule().pieces] == [[24]]

    def test_an_account_alone_fills_half_of_the_queue_and_a_newcomer_finds_room(self):
        """Each account gets a share of what is left; the whole is bounded all the same."""
        policy, filled = self.policy(queue=90, batch=1000), []
        for account in range(3):
            count = 0
            while policy.has_room(1, account):
                policy.submit(step_of(account * 8 + count % 8))
                count += 1
            filled.append(count)
            with pytest.raises(StreamcellError) as caught:
                policy.check_room(1, account)
            assert caught.value.reason is Reason.OVERLOADED
        assert filled == [45, 23, 11]
        assert policy.has_room(1, 5)
        while policy.has_ready:
            finish(policy, policy.schedule())
        assert policy.num_queued_steps == 0
        assert not policy._queued_by_account

    @pytest.mark.parametrize(("num_rivals", "share"), [(1, None), (2, 32), (3, 21), (8, 8)])
    def test_rivals_share_a_good_batch(self, num_rivals, share):
        """Each has its turn until it has its share in the queue; an account alone always has."""
        policy = self.policy()
        for account in range(1, num_rivals):
            policy.submit(step_of(account * 8))
        for count in range(100):
            assert policy.has_turn(0) == (share is None or count < share)
            policy.submit(step_of(count % 8))

    def test_a_long_input_keeps_no_step_of_its_own_account_out(self):
        """It is one request, whatever it has of steps; with the last step it leaves."""
        policy = self.policy(queue=10_000, batch=8)
        submit(policy, step_of(8), block_with({0: 1000}))
        for count in range(31):
            assert policy.has_turn(0)
            policy.submit(step_of(1 + count % 7))
        assert not policy.has_turn(0)
        finish(policy, policy.schedule())
        assert policy.has_turn(0)
        while policy.has_ready:
            finish(policy, policy.schedule())
        assert not policy._requests_by_account
        assert not policy._queued_by_account

    def test_an_empty_queue_takes_any_message(self):
        """Else a message as large as the queue could never be served."""
        policy = self.policy(queue=4)
        policy.submit(block_with({0: 100}))
        assert not policy.has_room(1, 1)

    def test_steps_count_for_the_account_that_queued_them_though_the_slot_changes_hands(self):
        """A slot may have another principal's session by the time a step leaves the queue."""
        owner = {0: 1}
        policy = Scheduler(
            8, max_queue_steps=9, max_batch_steps=8, max_piece_steps=4, account_of=lambda slot: owner[slot]
        )
        submit(policy, step_of(0), step_of(0))
        owner[0] = 2
        while policy.has_ready:
            finish(policy, policy.schedule())
        assert not policy._queued_by_account

    def test_withdrawn_work_gives_its_room_back(self):
        """To its own account."""
        policy = self.policy()
        work = step_of(0)
        policy.submit(work)
        policy.withdraw(work)
        policy.schedule()
        assert not policy._queued_by_account

    def test_one_caller_at_fifty_times_its_share_costs_the_others_nothing(self):
        """Seven send an eighth of what the server can do; the eighth sends fifty times as much."""
        policy, num_rounds, share = self.policy(queue=4096, batch=80), 400, 8
        applied = [0] * 8
        wanted = [share] * 7 + [50 * share]
        refused = [0] * 8
        for _ in range(num_rounds):
            for account, count in enumerate(wanted):
                for each in range(count):
                    work = step_of(account * 8 + each % 8)
                    try:
                        policy.submit(work)
                    except StreamcellError:
                        refused[account] += 1
            batch = policy.schedule()
            for work in batch.steps:
                applied[work.slot // 8] += 1
            finish(policy, batch)
        assert refused[:7] == [0] * 7
        assert refused[7] > 0
        assert min(applied[:7]) >= 0.99 * share * num_rounds
