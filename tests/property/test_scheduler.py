"""The scheduler under any sequence of events: order is kept, no work is lost or run twice, all work ends."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.engine.scheduler import Batch, Scheduler
from service.engine.work import Block, Control, Phase
from service.errors import Reason, StreamcellError
from tests.fakes.work import block_with, step_of

CAPACITY, QUEUE, BATCH, PIECE = 6, 30, 4, 3
SLOTS = st.integers(0, CAPACITY - 1)


class ReportingScheduler(Scheduler):
    """A scheduler that reports all work that ends, also withdrawn work."""

    def __init__(self, on_end):
        super().__init__(CAPACITY, max_queue_steps=QUEUE, max_batch_steps=BATCH, max_piece_steps=PIECE)
        self.on_end = on_end

    def finish(self, work):
        """Reports and ends work."""
        self.on_end(work)
        super().finish(work)

    def finish_steps(self, steps):
        """Reports and ends steps."""
        for step in steps:
            self.on_end(step)
        super().finish_steps(steps)


def long_steps(batch):
    """Returns the steps computed for a batch's long inputs: every row costs as many as the longest."""
    pieces = [piece for piece in batch.pieces if piece.block.is_long]
    rows = sum(len(piece.entries) for piece in pieces)
    return rows * max((piece.length for piece in pieces), default=0)


class SchedulerMachine(RuleBasedStateMachine):
    """Submits, withdraws, schedules and finishes at random, and compares with lanes as plain lists."""

    def __init__(self):
        super().__init__()
        self.scheduler = ReportingScheduler(self.ended)
        self.lanes = {
            slot: deque() for slot in range(CAPACITY)
        }  # work of each session, in order, until it ends
        self.works = []  # all that was taken and has not ended
        self.rows = {}  # block -> entry -> rows run, in order
        self.batch = None  # the one that runs

    # -- What may happen -------------------------------------------------------------------------

    def submit(self, work, slots):
        """Submits work, and expects a refusal exactly if the queue has no room."""
        queued = sum(one.num_steps for one in self.works)
        if queued and queued + work.num_steps > QUEUE:
            with pytest.raises(StreamcellError) as caught:
                self.scheduler.submit(work)
            assert caught.value.reason is Reason.OVERLOADED
            return
        self.scheduler.submit(work)
        self.works.append(work)
        for slot in slots:
            self.lanes[slot].append(work)

    @rule(slot=SLOTS)
    def submit_step(self, slot):
        """Submits a step."""
        self.submit(step_of(slot), [slot])

    @rule(slot=SLOTS)
    def submit_control(self, slot):
        """Submits a control."""
        self.submit(Control(slot, 0, print, arrived_ns=0, on_done=print), [slot])

    @rule(counts=st.dictionaries(SLOTS, st.integers(1, 9), min_size=1))
    def submit_block(self, counts):
        """Submits a block over some sessions."""
        work = block_with(counts)
        self.rows[work] = [[] for _ in counts]
        self.submit(work, counts)

    @precondition(lambda self: self.works)
    @rule(data=st.data())
    def withdraw(self, data):
        """Withdraws some work."""
        work = data.draw(st.sampled_from(self.works))
        could = work.phase is Phase.QUEUED or (work.phase is Phase.STARTED and isinstance(work, Block))
        assert self.scheduler.withdraw(work) == could

    @precondition(lambda self: self.batch is None)
    @rule()
    def schedule(self):
        """Begins an iteration."""
        self.batch = self.scheduler.schedule()
        self.check_batch(self.batch)

    @precondition(lambda self: self.batch is not None)
    @rule(data=st.data())
    def finish(self, data):
        """Ends an iteration; entries of its blocks may have failed."""
        for piece in self.batch.pieces:
            if data.draw(st.booleans()):
                entry = data.draw(st.sampled_from(piece.entries.tolist()))
                piece.block.totals[entry] = 0
        self.finish_batch()

    def finish_batch(self):
        """Ends the work of a batch as the engine does."""
        batch, self.batch = self.batch, None
        for control in batch.controls:
            self.scheduler.finish(control)
        self.scheduler.finish_steps(batch.steps)
        for piece in batch.pieces:
            if not self.scheduler.advance(piece.block):
                self.scheduler.finish(piece.block)

    # -- What must hold --------------------------------------------------------------------------

    def check_batch(self, batch: Batch):
        """Checks that work is first in its lanes, no session is in twice, bounds hold, and no row is lost."""
        works = [*batch.controls, *batch.steps, *(piece.block for piece in batch.pieces)]
        framed = sum(len(piece.entries) for piece in batch.pieces if not piece.block.is_long)
        assert len(batch.steps) + framed <= BATCH
        assert long_steps(batch) <= BATCH
        taken = []
        for work in works:
            slots = work.slots.tolist() if isinstance(work, Block) else [work.slot]
            assert all(self.lanes[slot][0] is work for slot in slots), "overtaken within a session"
            taken += slots
            assert work.phase is Phase.STARTED
        assert len(taken) == len(set(taken)), "a session twice in a batch"
        for piece in batch.pieces:
            assert 1 <= piece.length <= PIECE
            assert len(piece.entries)
            for entry in piece.entries.tolist():
                rows = self.rows[piece.block][entry]
                assert len(rows) == piece.offset, "a row lost or run twice"
                left = int(piece.block.totals[entry]) - piece.offset
                rows += range(piece.offset, piece.offset + min(left, piece.length))

    def ended(self, work):
        """Removes ended work from the lists; a block that was not withdrawn must have run all its rows."""
        if isinstance(work, Block) and work.phase is not Phase.WITHDRAWN:
            for total, rows in zip(work.totals.tolist(), self.rows[work], strict=True):
                assert not total or rows == list(range(total))
        self.works.remove(work)
        for slot in work.slots.tolist() if isinstance(work, Block) else [work.slot]:
            assert self.lanes[slot].popleft() is work, "ended before its turn"

    @invariant()
    def the_queue_counts_right(self):
        """The scheduler's count of steps, and its busy sessions, agree with the lists."""
        assert self.scheduler.num_queued_steps == sum(work.num_steps for work in self.works)
        for slot, lane in self.lanes.items():
            assert self.scheduler.is_busy(slot) == bool(lane)

    def teardown(self):
        """Runs the rest, which must end within a bounded number of iterations."""
        for _ in range(1000):
            if self.batch is not None:
                self.finish_batch()
            if not self.scheduler.has_ready:
                break
            self.batch = self.scheduler.schedule()
            self.check_batch(self.batch)
        assert self.works == []
        assert self.scheduler.num_queued_steps == 0
        assert not any(self.scheduler.is_busy(slot) for slot in range(CAPACITY))


SchedulerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestScheduler = SchedulerMachine.TestCase


@given(
    lengths=st.lists(st.lists(st.integers(2, 60), min_size=1, max_size=20), max_size=8),
    max_batch=st.integers(1, 24),
    max_piece=st.integers(1, 9),
    arrivals=st.lists(st.integers(0, 3), min_size=1, max_size=40),
)
@settings(max_examples=150, deadline=None)
def test_a_single_step_is_in_the_very_next_batch(lengths, max_batch, max_piece, arrivals):
    """Long inputs never delay a single step, outgrow their bound, or starve."""
    num_long = sum(len(entries) for entries in lengths)
    scheduler = Scheduler(
        num_long + 3, max_queue_steps=10**6, max_batch_steps=max_batch, max_piece_steps=max_piece
    )
    free, waited = iter(range(3, num_long + 3)), {}  # batches since each long input last ran, until it ends
    for entries in lengths:
        block = block_with({next(free): length for length in entries})
        scheduler.submit(block)
        waited[block] = 0
    for number in range(num_long * 60 + len(arrivals)):
        steps = [
            step_of(slot) for slot in range(min(max_batch, arrivals[number] if number < len(arrivals) else 0))
        ]
        for step in steps:
            scheduler.submit(step)
        if not scheduler.has_ready:
            break
        batch = scheduler.schedule()
        assert batch.steps == steps
        assert long_steps(batch) <= max_batch
        assert all(piece.length <= max_piece for piece in batch.pieces)
        ran = {piece.block for piece in batch.pieces}
        waited = {block: 0 if block in ran else turns + 1 for block, turns in waited.items()}
        assert all(turns <= len(lengths) for turns in waited.values()), "a long input starves"
        scheduler.finish_steps(batch.steps)
        for piece in batch.pieces:
            if not scheduler.advance(piece.block):
                scheduler.finish(piece.block)
                del waited[piece.block]
    assert not scheduler.has_ready
    assert scheduler.num_queued_steps == 0


WORKS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["step", "control", "block"])), max_size=12)


@given(WORKS, st.lists(st.integers(0, 11), max_size=3))
@settings(max_examples=150, deadline=None)
def test_steps_ended_together_are_steps_ended_one_by_one(works, gone):
    """Ending steps together leaves the same ready work, order, busy sessions and count as one by one."""

    def served(is_together):
        scheduler = Scheduler(4, max_queue_steps=100, max_batch_steps=3, max_piece_steps=2)
        order, named = [], {}
        for number, (slot, kind) in enumerate(works):
            if kind == "block":
                work = block_with({slot: 1, (slot + 1) % 4: 2})
            elif kind == "control":
                work = Control(slot, 0, print, arrived_ns=0, on_done=print)
            else:
                work = step_of(slot)
            named[work] = number
            scheduler.submit(work)
            if number in gone:
                scheduler.withdraw(work)
        while scheduler.has_ready:
            batch = scheduler.schedule()
            order.append([named[work] for work in [*batch.controls, *batch.steps]])
            order.append([(named[piece.block], piece.offset) for piece in batch.pieces])
            for control in batch.controls:
                scheduler.finish(control)
            if is_together:
                scheduler.finish_steps(batch.steps)
            else:
                for step in batch.steps:
                    scheduler.finish(step)
            for piece in batch.pieces:
                if not scheduler.advance(piece.block):
                    scheduler.finish(piece.block)
            order.append((scheduler.num_queued_steps, [scheduler.is_busy(slot) for slot in range(4)]))
        return order

    assert served(is_together=True) == served(is_together=False)
