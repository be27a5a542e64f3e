"""The step protocol: whether a step is the next, a repeat, or neither.

A session's steps apply in index order, each once. One applied before gets its earlier reply again and moves
nothing; another input under its index is refused, as is a step ahead of the next. Knows sessions and
manifest; does not know states, batches or tensors.
"""

import numpy as np

from service import errors
from service.arrays import Float32s, Int64s, Prints
from service.engine.progress import MAX_TIME_NS, TIME_ABSENT
from service.engine.scheduler import Piece
from service.engine.session_table import SessionTable
from service.engine.work import INDEX_NEXT, Block, Step
from service.errors import Reason, StreamcellError
from service.runtime.manifest import Manifest


class Admission:
    """Checks work against the sessions of one model, at the moment its turn has come."""

    def __init__(self, sessions: SessionTable, manifest: Manifest) -> None:
        self._sessions = sessions
        self._progress = sessions.progress
        self._durability = sessions.durability
        self.uses_time = manifest.uses_time
        self._interval_ns = manifest.step_interval_ns

    def admit_step(self, step: Step) -> bool:
        """Tells whether a step is to run; if not, it is a repeat and its earlier reply is set.

        Raises:
            StreamcellError: the step is refused.
        """
        sessions, durability, slot = self._sessions, self._durability, step.slot
        if sessions.generation.item(slot) != step.generation:
            raise errors.session_ended(sessions.endings.in_slot(slot))
        if durability.trouble and (durability.is_durable.item(slot) or step.restarts):
            raise errors.refusal(Reason.STORE_UNAVAILABLE, problem=durability.trouble)
        expected = self._progress.next_step.item(slot)
        if not self.uses_time:
            step.time = 0
        if step.index != expected and step.index != INDEX_NEXT:
            self._answer_repeat(step, expected)
            return False
        step.step_index = expected
        if self.uses_time:
            is_given = step.time != TIME_ABSENT
            step.run_time = step.time if is_given else self._time_after(slot, 1, "time_ns")
        return True

    def admit_group(self, piece: Piece) -> None:
        """Checks the entries of a block's group before its first piece runs.

        Entries refused are failed in the block; rows applied before are answered and taken off the front.
        """
        block, entries = piece.block, piece.entries
        slots = block.slots[entries]
        gone = self._sessions.generation[slots] != block.generations[entries]
        expected = self._progress.next_step[slots]
        asked = np.where(block.indexes[entries] == INDEX_NEXT, expected, block.indexes[entries])
        block.step_indexes[entries] = asked
        unusual = gone | (asked != expected)
        needs_store = self._durability.is_durable[slots] | block.restarts
        if self._durability.trouble:
            unusual |= needs_store
        if self.uses_time and block.times is None:
            last = self._progress.last_time[slots] + block.totals[entries] * float(self._interval_ns)
            unusual |= (expected == 0) | (last > MAX_TIME_NS)
        for at in np.flatnonzero(unusual).tolist():
            entry = int(entries[at])
            try:
                if gone[at]:
                    raise errors.session_ended(self._sessions.endings.in_slot(int(slots[at])))
                if self._durability.trouble and needs_store[at]:
                    raise errors.refusal(Reason.STORE_UNAVAILABLE, problem=self._durability.trouble)
                self._recognise(block, entry, int(asked[at]), int(expected[at]))
            except StreamcellError as error:
                block.fail(entry, error)

    def drop_gone(self, piece: Piece) -> None:
        """Fails the entries whose sessions another server has taken since their group began.

        Others may have their slots by now.
        """
        block, slots = piece.block, piece.block.slots[piece.entries]
        gone = self._sessions.generation[slots] != block.generations[piece.entries]
        for entry, slot in zip(piece.entries[gone].tolist(), slots[gone].tolist(), strict=True):
            block.fail(entry, errors.session_ended(self._sessions.endings.in_slot(slot)))

    def given_times(self, block: Block, rows: Int64s) -> Int64s:
        """Returns the times of rows (of any shape) as the request gave them, for fingerprints."""
        if not self.uses_time:
            return np.zeros(rows.shape, np.int64)
        return np.full(rows.shape, TIME_ABSENT, np.int64) if block.times is None else block.times[rows]

    def run_times(self, block: Block, entries: Int64s, rows: Int64s) -> Int64s:
        """Returns the times that the model gets for rows [B, T] of entries [B] that run next."""
        if not self.uses_time:
            return np.zeros(rows.shape, np.int64)
        if block.times is not None:
            return block.times[rows]
        ahead = np.arange(1, rows.shape[1] + 1) * self._interval_ns  # (T,)
        times: Int64s = self._progress.last_time[block.slots[entries]][:, None] + ahead
        return times

    def _time_after(self, slot: int, num_steps: int, field: str) -> int:
        """Returns the time that so many steps without one lead to."""
        if not self._progress.next_step[slot]:
            raise first_time_missing(field)
        time = int(self._progress.last_time[slot]) + num_steps * self._interval_ns
        if time > MAX_TIME_NS:
            raise errors.invalid_argument(field, f"{time} would follow, beyond {MAX_TIME_NS}: give the time")
        return time

    def _answer_repeat(self, step: Step, expected: int) -> None:
        x = np.frombuffer(step.x, np.float32)[None]  # (1, F)
        prints = self._progress.fingerprints(x, np.array([step.time], np.int64))
        known = self._known_reply(step.slot, step.index, expected, prints[0])
        if known is None:
            raise errors.refusal(Reason.STEP_FORGOTTEN, step_index=step.index, expected_step_index=expected)
        step.step_index = step.index
        step.is_repeat = True
        step.y = known.tolist()

    def _known_reply(self, slot: int, index: int, expected: int, fingerprint: np.uint64) -> Float32s | None:
        """Returns the earlier reply to a repeated step, None when it is no longer kept."""
        if index > expected:
            raise errors.refusal(Reason.STEP_GAP, expected_step_index=expected, got=index)
        remembered = self._progress.remembered(slot, index)
        if remembered is None:
            return None
        if remembered[0] != int(fingerprint):
            raise errors.refusal(Reason.STEP_CONFLICT, step_index=index)
        return remembered[1]

    def _recognise(self, block: Block, entry: int, asked: int, expected: int) -> None:
        """Answers the rows of an entry that were applied before, and takes them off its front."""
        slot, start = int(block.slots[entry]), int(block.starts[entry])
        if asked > expected:
            raise errors.refusal(Reason.STEP_GAP, expected_step_index=expected, got=asked)
        num_known = min(expected - asked, int(block.totals[entry]))
        prints = self._prints(block, start, num_known)
        for row in range(num_known):
            reply = self._known_reply(slot, asked + row, expected, prints[row])
            is_wanted = block.wants_replies or row == block.totals[entry] - 1
            if reply is None and is_wanted:
                raise errors.refusal(
                    Reason.STEP_FORGOTTEN, step_index=asked + row, expected_step_index=expected
                )
            if reply is not None:
                block.y[start + row] = reply
        block.starts[entry] += num_known
        block.totals[entry] -= num_known
        if self.uses_time and block.times is None:
            self._time_after(slot, int(block.totals[entry]), "time_raw")

    def _prints(self, block: Block, start: int, count: int) -> Prints:
        rows = np.arange(start, start + count)
        return self._progress.fingerprints(block.x[rows], self.given_times(block, rows))


def first_time_missing(field: str) -> StreamcellError:
    """Returns the error for a session's first step without a time, on a model that uses it."""
    return errors.invalid_argument(field, "this model uses time, so a session's first step must give it")
