"""The step protocol: whether a step is the next one, a repeat, or neither.

A session's steps apply in index order, each once. A repeat of an applied step gets the earlier reply and
moves nothing. Refused are another input under an applied index, and an index past the next one. Does not know
states, batches or tensors.
"""

import itertools

import numpy as np

from service import errors
from service.arrays import Flags, Float32s, Int64s, Prints
from service.engine.progress import MAX_TIME_NS, TIME_ABSENT
from service.engine.scheduler import Piece
from service.engine.session_table import SessionTable
from service.engine.work import INDEX_NEXT, Block, Step
from service.errors import Reason, StreamcellError
from service.runtime.manifest import Manifest


class Admission:
    """Checks work against the sessions of one model, in the iteration that is to run the work.

    Args:
        times_must_rise: whether a step must be later than its session's last one, if the model uses time.
    """

    def __init__(self, sessions: SessionTable, manifest: Manifest, *, times_must_rise: bool = True) -> None:
        self._sessions = sessions
        self._progress = sessions.progress
        self._durability = sessions.durability
        self._generation, self._next_step = sessions.generation, sessions.progress.next_step
        self.uses_time = manifest.uses_time
        self._times_must_rise = times_must_rise and manifest.uses_time
        self._interval_ns = manifest.step_interval_ns

    def admit_step(self, step: Step) -> bool:
        """Returns whether a step is to run; if not, it is a repeat, and the earlier reply is set.

        Raises:
            StreamcellError: the step is refused.
        """
        durability, slot = self._durability, step.slot
        if self._generation.item(slot) != step.generation:
            raise errors.session_ended(self._sessions.endings.in_slot(slot))
        if durability.trouble and (durability.is_durable.item(slot) or step.restarts):
            raise errors.refusal(Reason.STORE_UNAVAILABLE, problem=durability.trouble)
        expected = self._next_step.item(slot)
        if not self.uses_time:
            step.time = 0
        if step.index != expected and step.index != INDEX_NEXT:
            self._answer_repeat(step, expected)
            return False
        step.step_index = expected
        if self.uses_time:
            if step.time == TIME_ABSENT:
                step.run_time = self._time_after(slot, 1, "time_ns")
                return True
            if self._times_must_rise and expected:
                _check_rising("time_ns", step.time, self._progress.last_time.item(slot))
            step.run_time = step.time
        return True

    def admit_group(self, piece: Piece) -> None:
        """Checks the entries of a group before the first piece of the group runs.

        Fails the refused entries in the block. Rows that were applied before are answered and taken off the
        front of their entry.
        """
        block, entries = piece.block, piece.entries
        slots = block.slots[entries]
        ended = self._generation[slots] != block.generations[entries]
        expected = self._next_step[slots]
        asked = np.where(block.indexes[entries] == INDEX_NEXT, expected, block.indexes[entries])
        block.step_indexes[entries] = asked
        unusual = ended | (asked != expected)
        needs_store = self._durability.is_durable[slots] | block.restarts
        if self._durability.trouble:
            unusual |= needs_store
        if self.uses_time and block.times is None:
            last = self._progress.last_time[slots] + block.totals[entries] * float(self._interval_ns)
            unusual |= (expected == 0) | (last > MAX_TIME_NS)
        elif self._times_must_rise and block.times is not None:
            unusual |= self._may_fall(block, block.times, entries, expected)
        for at in np.flatnonzero(unusual).tolist():
            entry = int(entries[at])
            try:
                if ended[at]:
                    raise errors.session_ended(self._sessions.endings.in_slot(int(slots[at])))
                if self._durability.trouble and needs_store[at]:
                    raise errors.refusal(Reason.STORE_UNAVAILABLE, problem=self._durability.trouble)
                self._answer_applied_rows(block, entry, int(asked[at]), int(expected[at]))
                if self._times_must_rise and block.times is not None:
                    self._check_times(block, block.times, entry, is_first=not expected[at])
            except StreamcellError as error:
                block.fail(entry, error)

    def refuse_ended(self, piece: Piece) -> None:
        """Fails the entries whose sessions another server has taken over since the group began.

        The slots of these sessions may belong to other sessions by now.
        """
        block, slots = piece.block, piece.block.slots[piece.entries]
        ended = self._generation[slots] != block.generations[piece.entries]
        for entry, slot in zip(piece.entries[ended].tolist(), slots[ended].tolist(), strict=True):
            block.fail(entry, errors.session_ended(self._sessions.endings.in_slot(slot)))

    def given_times(self, block: Block, rows: Int64s) -> Int64s:
        """Returns the times of rows (of any shape) as the request gave them, for fingerprints."""
        if not self.uses_time:
            return np.zeros(rows.shape, np.int64)
        return np.full(rows.shape, TIME_ABSENT, np.int64) if block.times is None else block.times[rows]

    def run_times(self, block: Block, entries: Int64s, rows: Int64s) -> Int64s:
        """Returns the times that the model gets for the next rows [B, T] of entries [B]."""
        if not self.uses_time:
            return np.zeros(rows.shape, np.int64)
        if block.times is not None:
            return block.times[rows]
        ahead = np.arange(1, rows.shape[1] + 1) * self._interval_ns  # (T,)
        times: Int64s = self._progress.last_time[block.slots[entries]][:, None] + ahead
        return times

    def _may_fall(self, block: Block, times: Int64s, entries: Int64s, expected: Int64s) -> Flags:
        """Returns which entries [B] have a time that is not later than the one before; `expected` is [B]."""
        starts, last_time = block.starts[entries], self._progress.last_time[block.slots[entries]]
        falls: Flags = (expected > 0) & (times[starts] <= last_time)
        if block.is_long:
            # How many of a block's times up to each row are not later than the row's before.
            num_falls = np.concatenate([[0], np.cumsum(np.diff(times) <= 0)])
            falls |= num_falls[starts] < num_falls[starts + block.totals[entries] - 1]
        return falls

    def _check_times(self, block: Block, times: Int64s, entry: int, *, is_first: bool) -> None:
        """Checks that the times of an entry's remaining rows rise, from the session's last time on.

        Raises:
            StreamcellError: INVALID_ARGUMENT, with both times.
        """
        start = int(block.starts[entry])
        to_run = times[start : start + int(block.totals[entry])].tolist()
        if not is_first:
            to_run.insert(0, int(self._progress.last_time[block.slots[entry]]))
        for before, after in itertools.pairwise(to_run):
            _check_rising("time_raw", after, before)

    def _time_after(self, slot: int, num_steps: int, field: str) -> int:
        """Returns the time of a session after `num_steps` more steps that give no time."""
        if not self._next_step[slot]:
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
        """Returns the earlier reply to a repeated step; None if it is no longer remembered."""
        if index > expected:
            raise errors.refusal(Reason.STEP_GAP, expected_step_index=expected, got=index)
        remembered = self._progress.remembered(slot, index)
        if remembered is None:
            return None
        if remembered[0] != int(fingerprint):
            raise errors.refusal(Reason.STEP_CONFLICT, step_index=index)
        return remembered[1]

    def _answer_applied_rows(self, block: Block, entry: int, asked: int, expected: int) -> None:
        """Answers the rows of an entry that were applied before, and takes them off the front of the entry.

        `asked` is the index of the entry's first row, `expected` that of the session's next step.
        """
        slot, start = int(block.slots[entry]), int(block.starts[entry])
        if asked > expected:
            raise errors.refusal(Reason.STEP_GAP, expected_step_index=expected, got=asked)
        num_applied = min(expected - asked, int(block.totals[entry]))
        prints = self._prints(block, start, num_applied)
        for row in range(num_applied):
            reply = self._known_reply(slot, asked + row, expected, prints[row])
            is_wanted = block.wants_replies or row == block.totals[entry] - 1
            if reply is None and is_wanted:
                raise errors.refusal(
                    Reason.STEP_FORGOTTEN, step_index=asked + row, expected_step_index=expected
                )
            if reply is not None:
                block.y[start + row] = reply
        block.starts[entry] += num_applied
        block.totals[entry] -= num_applied
        if self.uses_time and block.times is None:
            self._time_after(slot, int(block.totals[entry]), "time_raw")

    def _prints(self, block: Block, start: int, count: int) -> Prints:
        rows = np.arange(start, start + count)
        return self._progress.fingerprints(block.x[rows], self.given_times(block, rows))


def _check_rising(field: str, time_ns: int, last_ns: int) -> None:
    if time_ns <= last_ns:
        raise errors.invalid_argument(
            field,
            f"{time_ns} is not later than {last_ns}, the time of the session's step before: was the step"
            " sent twice? The server's flag --time-order any allows it",
        )


def first_time_missing(field: str) -> StreamcellError:
    """Returns the error for a session's first step without a time, on a model that uses it."""
    return errors.invalid_argument(field, "this model uses time, so a session's first step must give it")
