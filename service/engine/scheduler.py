"""Decides which steps run next: pure policy over the work that waits.

Work on one session runs in the order it came, one piece at a time; across sessions whatever is ready goes
into the next batch, and no step waits for a timer. Long inputs go in bounded pieces, so that single steps
get in between. Does not know time, tensors, nor what becomes of the work.
"""

import dataclasses
from collections import deque
from typing import TypeVar

import numpy as np

from service import errors
from service.arrays import Int64s
from service.engine.work import AnyWork, Block, Control, Phase, Step
from service.errors import Reason

_RETRY_SECONDS = 0.1  # a full queue drains in about this long
_Started = TypeVar("_Started", Control, Step)


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a block that run together: of `entries`, the time steps offset .. offset + length - 1."""

    block: Block
    entries: Int64s
    offset: int
    length: int
    is_first: bool
    """Whether it opens its group of entries: the moment to check their step indexes."""


@dataclasses.dataclass(slots=True)
class Batch:
    """What one iteration runs. No session is in it twice."""

    controls: list[Control]
    steps: list[Step]
    pieces: list[Piece]


class Lanes:
    """The order of work on each session: only the first in every lane it is in may run."""

    def __init__(self, capacity: int) -> None:
        self._taken = bytearray(capacity)
        self._taken_column = np.frombuffer(self._taken, np.uint8)  # the same bytes, for blocks
        self._waiting: dict[int, deque[AnyWork]] = {}

    def is_taken(self, slot: int) -> bool:
        """Tells whether any work is in a slot's lane."""
        return self._taken[slot] != 0

    def enter(self, work: AnyWork) -> bool:
        """Puts work at the end of its lanes; tells whether it is first in all of them."""
        if not isinstance(work, Block):
            if self._taken[work.slot]:
                return self._enter_one(work.slot, work)
            self._taken[work.slot] = 1
            return True
        behind = work.slots[self._taken_column[work.slots] != 0]
        for slot in behind.tolist():
            self._enter_one(slot, work)
        self._taken_column[work.slots] = 1
        work.num_blockers = len(behind)
        return not len(behind)

    def _enter_one(self, slot: int, work: AnyWork) -> bool:
        if not self._taken[slot]:
            self._taken[slot] = 1
            return True
        self._waiting.setdefault(slot, deque()).append(work)
        work.num_blockers = 1
        return False

    def leave(self, work: AnyWork) -> list[AnyWork]:
        """Takes finished work out of its lanes; returns the work that became first everywhere by it."""
        if not isinstance(work, Block):
            return self._leave_one(work.slot)
        if not self._waiting:
            self._taken_column[work.slots] = 0
            return []
        return [ready for slot in work.slots.tolist() for ready in self._leave_one(slot)]

    def leave_all(self, steps: list[Step]) -> list[AnyWork]:
        """Takes finished steps out of their lanes; returns the work that became first everywhere by it."""
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
    """The work that waits, and the choice of what runs next.

    Args:
        capacity: slots there are.
        max_queue_steps: steps that may wait; more are refused.
        max_batch_steps: steps in one cell call; single steps and frames share one, long inputs have another.
        max_piece_steps: time steps of a long input in one iteration.
    """

    def __init__(
        self, capacity: int, max_queue_steps: int, max_batch_steps: int, max_piece_steps: int
    ) -> None:
        self._lanes = Lanes(capacity)
        self._max_queue_steps = max_queue_steps
        self._max_batch_steps = max_batch_steps
        self._max_piece_steps = max_piece_steps
        self._controls: deque[Control] = deque()
        self._steps: deque[Step] = deque()
        self._blocks: deque[Block] = deque()
        self.num_queued_steps = 0

    @property
    def has_ready(self) -> bool:
        """Whether an iteration would have something to do."""
        return bool(self._steps or self._blocks or self._controls)

    def is_busy(self, slot: int) -> bool:
        """Tells whether work of a session is queued or running."""
        return self._lanes.is_taken(slot)

    def has_room(self, num_steps: int) -> bool:
        """Tells whether so many steps may be queued."""
        # An empty queue takes anything that a message may hold, else that message could never be served.
        return self.num_queued_steps + num_steps <= self._max_queue_steps or not self.num_queued_steps

    def check_room(self, num_steps: int) -> None:
        """Checks that so many steps may be queued.

        Raises:
            StreamcellError: OVERLOADED.
        """
        if not self.has_room(num_steps):
            raise errors.refusal(
                Reason.OVERLOADED, queued_steps=self.num_queued_steps, retry_delay_seconds=_RETRY_SECONDS
            )

    def submit(self, work: AnyWork) -> None:
        """Queues work behind earlier work of its sessions.

        Raises:
            StreamcellError: OVERLOADED, and nothing is queued.
        """
        self.check_room(work.num_steps)
        self.num_queued_steps += work.num_steps
        if self._lanes.enter(work):
            self._make_ready(work)

    def withdraw(self, work: AnyWork) -> bool:
        """Takes back work whose running has not begun; tells whether it could.

        Of a block that has begun, the rows not scheduled yet are taken back.
        """
        if work.phase is Phase.QUEUED or (work.phase is Phase.STARTED and isinstance(work, Block)):
            work.phase = Phase.WITHDRAWN
            return True
        return False

    def schedule(self) -> Batch:
        """Takes the next batch from the queue.

        The caller runs it and then calls `finish` for each piece of work that is done: steps and controls
        always, blocks when `advance` says that nothing is left. Until then nothing else of their sessions
        is scheduled.
        """
        batch = Batch([], [], [])
        self._start(self._controls, batch.controls, len(self._controls))
        # Neither single steps nor frames can keep the other out: whoever waits gets half at least.
        half = min(len(self._steps), self._max_batch_steps // 2)
        num_taken = self._schedule_blocks(batch, self._max_batch_steps - half) if self._blocks else 0
        self._start(self._steps, batch.steps, self._max_batch_steps - num_taken)
        return batch

    def finish(self, work: AnyWork) -> None:
        """Ends work that ran, or was withdrawn; what waited behind it may become ready."""
        self.num_queued_steps -= work.num_steps
        for ready in self._lanes.leave(work):
            self._make_ready(ready)

    def finish_steps(self, steps: list[Step]) -> None:
        """Ends single steps that ran."""
        self.num_queued_steps -= len(steps)
        for ready in self._lanes.leave_all(steps):
            self._make_ready(ready)

    def advance(self, block: Block) -> bool:
        """Moves a block past the piece that ran; tells whether rows are left, for which it queues again."""
        if block.rows_done >= block.totals[block.cursor : block.stop].max():
            block.cursor = block.stop
        if block.cursor == len(block.slots) or block.phase is Phase.WITHDRAWN:
            return False
        self._blocks.append(block)
        return True

    def _make_ready(self, work: AnyWork) -> None:
        if isinstance(work, Step):
            self._steps.append(work)
        elif isinstance(work, Block):
            self._blocks.append(work)
        else:
            self._controls.append(work)

    def _start(self, waiting: deque[_Started], into: list[_Started], room: int) -> None:
        """Moves up to `room` pieces of work that is still wanted from a queue into a batch."""
        while waiting and len(into) < room:
            work = waiting.popleft()
            if work.phase is Phase.WITHDRAWN:
                self.finish(work)
            else:
                work.phase = Phase.STARTED
                into.append(work)

    def _schedule_blocks(self, batch: Batch, frame_room: int) -> int:
        """Takes pieces of blocks, in turn, while there is room; returns how many sessions step once."""
        num_taken = 0
        rows = length = 0  # of the long part, in which every row costs as much as the longest
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
        """Cuts as many entries of a frame as fit, None where none does."""
        if room < 1:
            return None
        return self._cut(block, min(block.cursor + room, len(block.slots)), 1)

    def _cut_long(self, block: Block, rows: int, length: int) -> Piece | None:
        """Cuts the next piece of a long input, None where it does not fit beside so many rows and steps.

        It goes in whole or waits, and is first in the next batch: cut to what is left, short inputs would be
        scanned a few at a time at the length of a long one.
        """
        most = self._max_batch_steps
        stop, done = block.stop, block.rows_done
        if stop <= block.cursor:
            stop, done = min(block.cursor + most, len(block.slots)), 0
        totals = block.totals[block.cursor : stop]
        num_entries = int(np.count_nonzero(totals > done))
        steps = min(int(totals.max()) - done, self._max_piece_steps, max(1, most // num_entries))
        if rows and (rows + num_entries) * max(length, steps) > most:
            return None
        return self._cut(block, stop, steps)

    @staticmethod
    def _cut(block: Block, stop: int, length: int) -> Piece:
        """Cuts `length` time steps of the entries up to `stop`, which form a group until all are done."""
        is_first = block.stop <= block.cursor
        if is_first:
            block.stop, block.rows_done = stop, 0
        offset = block.rows_done
        entries = block.cursor + np.flatnonzero(block.totals[block.cursor : stop] > offset)
        block.rows_done += length
        return Piece(block, entries, offset, length, is_first)
