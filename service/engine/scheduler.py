"""Decides which work runs next: pure policy over the queue.

Work on one session runs in the order it was submitted, one piece at a time. Across sessions whatever is ready
goes into the next batch; no step waits for a timer. Long inputs run in bounded pieces, so that single steps
run in between. Does not know time, tensors, nor the results of the work.
"""

import dataclasses
from collections import Counter, deque
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from service import errors
from service.accounts import NOBODY
from service.arrays import Int64s
from service.engine.fair_queue import FairQueue
from service.engine.rivals import Rivals
from service.engine.work import AnyWork, Block, Control, Phase, Step
from service.errors import Reason

_RETRY_SECONDS = 0.1  # a full queue drains in about this long
_SHARED_REQUESTS = 64  # that rivals together may have in the queue: of single steps, a good batch
_MIN_SHARE_REQUESTS = 8  # that each of them may have there, however many they are
_Started = TypeVar("_Started", Control, Step)
_Item = TypeVar("_Item", Control, Step, Block)
_Queue = deque[_Item] | FairQueue[_Item]


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a block that run in one call: the time steps offset .. offset + length - 1 of `entries`."""

    block: Block
    entries: Int64s
    offset: int
    length: int
    begins_group: bool
    """Whether the piece is the first of its group of entries: the moment to check their step indexes."""


@dataclasses.dataclass(slots=True)
class Batch:
    """The work of one iteration. No session is in a batch twice."""

    controls: list[Control]
    steps: list[Step]
    pieces: list[Piece]


class Lanes:
    """A lane, that is a queue, for each session: work runs once it is first in each of its lanes.

    The first work of a lane is not in the queue: the lane is merely taken.
    """

    def __init__(self, capacity: int) -> None:
        self._taken = bytearray(capacity)
        self._taken_column = np.frombuffer(self._taken, np.uint8)  # the same bytes, for blocks
        self._waiting: dict[int, deque[AnyWork]] = {}

    def is_taken(self, slot: int) -> bool:
        """Returns whether any work is in a slot's lane."""
        return self._taken[slot] != 0

    def enter(self, work: AnyWork) -> bool:
        """Puts work at the end of its lanes; returns whether the work is first in all of them."""
        if not isinstance(work, Block):
            if not self._taken[work.slot]:
                self._taken[work.slot] = 1
                return True
            self._waiting.setdefault(work.slot, deque()).append(work)
            work.num_blockers = 1
            return False
        behind = work.slots[self._taken_column[work.slots] != 0]
        for slot in behind.tolist():
            self._waiting.setdefault(slot, deque()).append(work)
        self._taken_column[work.slots] = 1
        work.num_blockers = len(behind)
        return not len(behind)

    def leave(self, work: AnyWork) -> list[AnyWork]:
        """Takes finished work out of its lanes; returns the work that is now first in all of its lanes."""
        if not isinstance(work, Block):
            return self._leave_one(work.slot)
        if not self._waiting:
            self._taken_column[work.slots] = 0
            return []
        return [ready for slot in work.slots.tolist() for ready in self._leave_one(slot)]

    def leave_all(self, steps: list[Step]) -> list[AnyWork]:
        """Takes finished steps out of their lanes; returns the work that is now first in all of its lanes."""
        if self._waiting:
            return [ready for step in steps for ready in self._leave_one(step.slot)]
        taken = self._taken
        for step in steps:
            taken[step.slot] = 0
        return []

    def _leave_one(self, slot: int) -> list[AnyWork]:
        lane = self._waiting.get(slot) if self._waiting else None
        if lane is None:
            self._taken[slot] = 0
            return []
        first = lane.popleft()
        if not lane:
            del self._waiting[slot]
        first.num_blockers -= 1
        return [] if first.num_blockers else [first]


class Scheduler:
    """The queue of one engine, and the choice of what runs next.

    Args:
        capacity: the number of slots.
        max_queue_steps: the most steps in the queue; more are refused.
        max_batch_steps: the most steps in one cell call; single steps and frames share one call, long inputs
            have another.
        max_piece_steps: the most time steps of a long input in one iteration.
        account_of: returns the account of the session in a slot, where accounts take turns; None: whatever
            comes first runs first.
    """

    def __init__(
        self,
        capacity: int,
        *,
        max_queue_steps: int,
        max_batch_steps: int,
        max_piece_steps: int,
        account_of: Callable[[int], int] | None = None,
    ) -> None:
        self._lanes = Lanes(capacity)
        self._max_queue_steps = max_queue_steps
        self._max_batch_steps = max_batch_steps
        self._max_piece_steps = max_piece_steps
        self._account_of = account_of
        self._controls: _Queue[Control] = _new_queue(account_of)
        self._steps: _Queue[Step] = _new_queue(account_of)
        self._blocks: _Queue[Block] = _new_queue(account_of)
        self.num_queued_steps = 0
        self._queued_by_account: Counter[int] = Counter()
        self._requests_by_account: Counter[int] = Counter()
        self._rivals = Rivals()

    @property
    def has_ready(self) -> bool:
        """Whether an iteration would have work to run."""
        return bool(self._steps or self._blocks or self._controls)

    def is_busy(self, slot: int) -> bool:
        """Returns whether work of a session is queued or running."""
        return self._lanes.is_taken(slot)

    def has_room(self, num_steps: int, account: int = NOBODY) -> bool:
        """Returns whether an account may queue so many steps."""
        # An empty queue takes whatever one message may hold; otherwise that message could never be served.
        if not self.num_queued_steps:
            return True
        room = self._max_queue_steps - self.num_queued_steps
        if self._account_of is None:
            return num_steps <= room
        mine = self._queued_by_account[account]
        # No account may have more in the queue than what it leaves free: one alone gets half of the queue,
        # two get a third each, and a newcomer finds room (Choudhury and Hahne, "Dynamic queue length
        # thresholds in a shared memory packet switch", 1998).
        return num_steps <= room and (not mine or mine + num_steps <= room)

    def has_turn(self, account: int) -> bool:
        """Returns whether an account may queue another request before its rivals had theirs.

        A step costs the server more on its way in and out than in the queue. So a fair queue is not enough:
        an account whose streams fill it has most of the server. While accounts are rivals, each keeps a few
        requests in the queue and the rest with its clients, which are read as requests are done. A long input
        is one request, so it keeps no step of its own account out.
        """
        if self._rivals.count < 2:
            return True
        share = max(_MIN_SHARE_REQUESTS, _SHARED_REQUESTS // self._rivals.count)
        return self._requests_by_account.get(account, 0) < share

    def check_room(self, num_steps: int, account: int = NOBODY) -> None:
        """Checks that an account may queue so many steps.

        Raises:
            StreamcellError: OVERLOADED.
        """
        if not self.has_room(num_steps, account):
            raise errors.refusal(
                Reason.OVERLOADED, queued_steps=self.num_queued_steps, retry_delay_seconds=_RETRY_SECONDS
            )

    def submit(self, work: AnyWork) -> None:
        """Queues work behind earlier work of its sessions.

        Raises:
            StreamcellError: OVERLOADED, and nothing is queued.
        """
        if self._account_of is not None:
            work.account = self._account_of(int(work.slots[0]) if isinstance(work, Block) else work.slot)
            self._rivals.note(work.account)
        self.check_room(work.num_steps, work.account)
        self._queue(work.account, work.num_steps, 1)
        if self._lanes.enter(work):
            self._make_ready(work)

    def withdraw(self, work: AnyWork) -> bool:
        """Takes back work that has not begun, and returns whether it could.

        A block that has begun is taken back, too: its rows that are not scheduled yet do not run.
        """
        if work.phase is Phase.QUEUED or (work.phase is Phase.STARTED and isinstance(work, Block)):
            work.phase = Phase.WITHDRAWN
            return True
        return False

    def schedule(self) -> Batch:
        """Takes the next batch from the queue.

        The caller runs the batch and then calls `finish` for all work that is done: steps and controls
        always, a block when `advance` returns that no rows are left. Until then no other work of these
        sessions is scheduled.
        """
        self._rivals.pass_iteration()
        batch = Batch([], [], [])
        self._start_controls(batch.controls)
        # Neither single steps nor frames can keep the others out: both get half of the room at least.
        half = min(len(self._steps), self._max_batch_steps // 2)
        num_taken = self._schedule_blocks(batch, self._max_batch_steps - half) if self._blocks else 0
        self._start(self._steps, batch.steps, self._max_batch_steps - num_taken)
        return batch

    def finish(self, work: AnyWork) -> None:
        """Ends work that ran or was withdrawn; the work behind may become ready."""
        self._queue(work.account, -work.num_steps, -1)
        for ready in self._lanes.leave(work):
            self._make_ready(ready)

    def finish_steps(self, steps: list[Step]) -> None:
        """Ends single steps that ran; the work behind them may become ready."""
        if self._account_of is None:
            self.num_queued_steps -= len(steps)
        else:
            for account, count in Counter([step.account for step in steps]).items():
                self._queue(account, -count, -count)
        for ready in self._lanes.leave_all(steps):
            self._make_ready(ready)

    def advance(self, block: Block) -> bool:
        """Moves a block past the piece that ran; queues it again, and returns True, if rows are left."""
        if block.group_steps_done >= block.totals[block.group_start : block.group_stop].max():
            block.group_start = block.group_stop
        if block.group_start == len(block.slots) or block.phase is Phase.WITHDRAWN:
            return False
        self._blocks.append(block)
        return True

    def _queue(self, account: int, num_steps: int, num_requests: int) -> None:
        """Counts steps and requests that join the queue, or leave it if there are fewer than 0."""
        self.num_queued_steps += num_steps
        if self._account_of is not None:
            self._queued_by_account[account] += num_steps
            self._requests_by_account[account] += num_requests
            if not self._requests_by_account[account]:
                del self._requests_by_account[account], self._queued_by_account[account]

    def _make_ready(self, work: AnyWork) -> None:
        if isinstance(work, Step):
            self._steps.append(work)
        elif isinstance(work, Block):
            self._blocks.append(work)
        else:
            self._controls.append(work)

    def _start_controls(self, into: list[Control]) -> None:
        """Moves controls into a batch until they count for a batch of steps; ends withdrawn ones."""
        room = self._max_batch_steps
        while self._controls and room > 0:
            num_started = len(into)
            self._start(self._controls, into, num_started + 1)
            room -= sum(control.num_steps for control in into[num_started:])

    def _start(self, waiting: "_Queue[_Started]", into: list[_Started], room: int) -> None:
        """Moves work from a queue into a batch until that has `room` pieces; ends withdrawn work."""
        while waiting and len(into) < room:
            work = waiting.popleft()
            if work.phase is Phase.WITHDRAWN:
                self.finish(work)
            else:
                work.phase = Phase.STARTED
                into.append(work)

    def _schedule_blocks(self, batch: Batch, frame_room: int) -> int:
        """Takes pieces of blocks, in turn, while there is room; returns how many rows of frames it took."""
        num_taken = 0
        rows = length = 0  # of the call for long inputs, in which every row costs as much as the longest
        for _ in range(len(self._blocks)):
            block = self._blocks.popleft()
            if block.phase is Phase.WITHDRAWN:
                self.finish(block)
                continue
            if block.is_long:
                piece = self._cut_long(block, rows, length)
            else:
                piece = self._cut_frame(block, frame_room - num_taken)
            if piece is None:
                self._blocks.append(block)
                continue
            block.phase = Phase.STARTED
            batch.pieces.append(piece)
            if block.is_long:
                rows, length = rows + len(piece.entries), max(length, piece.length)
            else:
                num_taken += len(piece.entries)
        return num_taken

    def _cut_frame(self, block: Block, room: int) -> Piece | None:
        """Returns a piece of as many entries of a frame as fit; None if none does."""
        if room < 1:
            return None
        return self._cut(block, min(block.group_start + room, len(block.slots)), 1)

    def _cut_long(self, block: Block, rows: int, length: int) -> Piece | None:
        """Returns the next piece of a long input; None if it does not fit beside `rows` of `length` steps.

        A piece that does not fit as a whole waits, and is first in the next batch. If it were cut to the
        room left, short inputs would be scanned a few at a time at the length of a long one.
        """
        most = self._max_batch_steps
        stop, done = block.group_stop, block.group_steps_done
        if stop <= block.group_start:
            stop, done = min(block.group_start + most, len(block.slots)), 0
        totals = block.totals[block.group_start : stop]
        num_entries = int(np.count_nonzero(totals > done))
        steps = min(int(totals.max()) - done, self._max_piece_steps, max(1, most // num_entries))
        if rows and (rows + num_entries) * max(length, steps) > most:
            return None
        return self._cut(block, stop, steps)

    @staticmethod
    def _cut(block: Block, stop: int, length: int) -> Piece:
        """Returns `length` time steps of the entries up to `stop`, which stay a group until all have run."""
        begins_group = block.group_stop <= block.group_start
        if begins_group:
            block.group_stop, block.group_steps_done = stop, 0
        offset = block.group_steps_done
        entries = block.group_start + np.flatnonzero(block.totals[block.group_start : stop] > offset)
        block.group_steps_done += length
        return Piece(block, entries, offset, length, begins_group)


def _new_queue(account_of: Callable[[int], int] | None) -> "_Queue[_Item]":
    """Returns the queue for one kind of work; a plain one, which costs less, where no accounts take turns."""
    return deque() if account_of is None else FairQueue(lambda work: work.account)
