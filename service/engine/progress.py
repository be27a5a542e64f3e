"""How far sessions have come: their next steps, their last times, and the replies remembered for repeats.

Does not know the sessions' keys, their state rows, nor what a store has of them. Slots and times are passed
in.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from service.arrays import Flags, Float32s, Int64s, Prints

TIME_ABSENT = -(1 << 63)  # in a column of times: the request gave none
MAX_TIME_NS = 1 << 62  # in the year 2116; the least time is as far before 1970


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """Copies of the progress of N sessions, with rings of R remembered replies.

    The reply to the step of index i is at `i % R`. There are no replies to steps before `reply_start`.
    """

    next_step: Int64s  # (N,)
    last_time: Int64s  # (N,), Unix ns
    reply_start: Int64s  # (N,)
    reply_y: Float32s  # (N, R, O)
    reply_prints: Prints  # (N, R)

    def put(self, at: int, other: "Progress") -> None:
        """Overwrites one session's progress with that of `other`, which holds one session."""
        self.next_step[at] = other.next_step[0]
        self.last_time[at] = other.last_time[0]
        self.reply_start[at] = other.reply_start[0]
        self.reply_y[at] = other.reply_y[0]
        self.reply_prints[at] = other.reply_prints[0]


class AppliedSteps(NamedTuple):  # one for every cell call: a frozen dataclass takes twice as long to make
    """Steps that B sessions took in one cell call, each session once; T is the most steps of one session."""

    slots: Int64s  # (B,)
    lengths: Int64s  # (B,), how many steps each took, at least one
    x: Float32s  # (B, T, F), without meaning past lengths
    given_times: Int64s  # (B, T), as the requests gave them
    times: Int64s  # (B, T), as the model got them
    y: Float32s  # (B, T, O), without meaning past lengths

    def of(self, applied: Flags) -> "AppliedSteps":
        """Returns the steps of the rows that were applied [B]."""
        return AppliedSteps._make(column[applied] for column in self)


class ProgressTable:
    """The progress of up to `capacity` sessions, in columns indexed by slot.

    Args:
        num_inputs, num_outputs: how many values a step and a prediction have.
        replies_kept: how many replies are remembered for each session.
    """

    def __init__(self, capacity: int, num_inputs: int, num_outputs: int, replies_kept: int) -> None:
        # np.zeros takes address space, not memory: pages come with the first write.
        self.next_step: Int64s = np.zeros(capacity, np.int64)
        """The index of each session's next step. Written by this class alone."""
        self.last_time: Int64s = np.zeros(capacity, np.int64)
        """The time of each session's last step, Unix ns. Written by this class alone."""
        self.replies_kept = replies_kept
        self._reply_start: Int64s = np.zeros(capacity, np.int64)
        self._reply_y: Float32s = np.zeros((capacity, replies_kept, num_outputs), np.float32)
        self._reply_prints: Prints = np.zeros((capacity, replies_kept), np.uint64)
        self._weights = _weights(num_inputs + 1)

    def restart(self, slot: int) -> None:
        """Puts a session back to step 0, with no reply remembered."""
        self.next_step[slot] = 0
        self.last_time[slot] = 0
        self._set_reply_start(slot, 0)

    def read(self, slots: Int64s) -> Progress:
        """Returns copies of the progress of sessions."""
        return Progress(
            next_step=self.next_step[slots],
            last_time=self.last_time[slots],
            reply_start=self._reply_start[slots],
            reply_y=self._reply_y[slots],
            reply_prints=self._reply_prints[slots],
        )

    def put(self, slot: int, progress: Progress) -> None:
        """Overwrites a session's progress with that of one session, whose ring may have another size."""
        next_step = int(progress.next_step[0])
        self.next_step[slot] = next_step
        self.last_time[slot] = progress.last_time[0]
        ring_size = progress.reply_prints.shape[1]
        oldest = max(int(progress.reply_start[0]), next_step - ring_size)
        self._set_reply_start(slot, oldest)
        for index in range(max(oldest, next_step - self.replies_kept), next_step):
            here, there = index % self.replies_kept, index % ring_size
            self._reply_prints[slot, here] = progress.reply_prints[0, there]
            self._reply_y[slot, here] = progress.reply_y[0, there]

    def copy_from(self, source: "ProgressTable", source_slots: Int64s, slots: Int64s) -> None:
        """Copies the progress of N sessions of another version, from its slots [N] to `slots` [N]."""
        progress = source.read(source_slots)
        self.next_step[slots] = progress.next_step
        self.last_time[slots] = progress.last_time
        self._reply_start[slots] = progress.reply_start
        self._reply_y[slots] = progress.reply_y
        self._reply_prints[slots] = progress.reply_prints

    def apply(self, steps: AppliedSteps) -> None:
        """Moves sessions on by the steps that were applied to their states, and remembers the replies."""
        slots, lengths, x = steps.slots, steps.lengths, steps.x
        first = self.next_step[slots]  # (B,)
        self.next_step[slots] = first + lengths
        if x.shape[1] == 1:
            self.last_time[slots] = steps.times[:, 0]
            self._remember(slots, first, x[:, 0], steps.given_times[:, 0], steps.y[:, 0])
            return
        self.last_time[slots] = steps.times[np.arange(len(slots)), lengths - 1]
        left = lengths[:, None] - np.arange(x.shape[1])  # (B, T), steps from this one to the last
        row, step = np.nonzero((left > 0) & (left <= self.replies_kept))
        at = row, step
        self._remember(slots[row], first[row] + step, x[at], steps.given_times[at], steps.y[at])

    def remembered(self, slot: int, index: int) -> tuple[int, Float32s] | None:
        """Returns fingerprint and prediction of an applied step; None if they are no longer remembered."""
        if index < max(int(self.next_step[slot]) - self.replies_kept, int(self._reply_start[slot])):
            return None
        ring = index % self.replies_kept
        return int(self._reply_prints[slot, ring]), self._reply_y[slot, ring].copy()

    def fingerprints(self, x: Float32s, times: Int64s) -> Prints:
        """Returns a 64-bit fingerprint [N] of each input row, to distinguish a repeat from another step.

        Multilinear hashing with fixed weights: the same on every machine, one pass for a whole batch.

        Args:
            x: [N, F].
            times: [N], as the request gave them, or TIME_ABSENT; zeros for models without time.
        """
        words = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)  # (N, F)
        prints: Prints = words @ self._weights[:-1]  # (N,), modulo 2**64
        prints += times.view(np.uint64) * self._weights[-1]
        return prints

    def _remember(self, slots: Int64s, indexes: Int64s, x: Float32s, times: Int64s, y: Float32s) -> None:
        """Remembers the replies y [N, O] to steps with inputs x [N, F] and times [N] as given."""
        rings = indexes % self.replies_kept
        self._reply_prints[slots, rings] = self.fingerprints(x, times)
        self._reply_y[slots, rings] = y

    def _set_reply_start(self, slot: int, index: int) -> None:
        if self._reply_start[slot] != index:  # a column that is not written takes no memory
            self._reply_start[slot] = index


def _weights(count: int) -> Prints:
    """Returns fixed odd 64-bit numbers (splitmix64, Steele et al. 2014, from seed 0)."""
    mask = (1 << 64) - 1
    weights = []
    for number in range(1, count + 1):
        z = number * 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        weights.append((z ^ z >> 31) | 1)
    return np.array(weights, np.uint64)
