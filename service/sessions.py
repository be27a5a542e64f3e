"""The sessions of one model: who they are and where they stand, in columns indexed by slot.

Owns ids, counters, times and the replies kept for repeated steps. Does not know the state rows, the model,
nor when anything happens: slots and times are passed in.
"""

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Prints = npt.NDArray[np.uint64]

TIME_ABSENT = -(1 << 63)  # in a column of times: the request gave none
MAX_TIME_NS = 1 << 62  # the year 2116; and the same before 1970
_MAX_REMEMBERED = 10_000  # expired ids remembered, to tell SESSION_EXPIRED from SESSION_NOT_FOUND


class Sessions:
    """Columns for up to `capacity` sessions whose predictions have `num_outputs` values.

    `next_step`, `last_time` and `last_used` (monotonic ns) can be indexed by one slot or an array of slots.
    A `generation` counts a slot's sessions, so that a number kept from an earlier one is recognised.
    """

    def __init__(self, capacity: int, num_inputs: int, num_outputs: int, replies_kept: int) -> None:
        # np.zeros takes address space, not memory: pages come with the first write.
        self.next_step: Int64s = np.zeros(capacity, np.int64)
        self.last_time: Int64s = np.zeros(capacity, np.int64)
        self.last_used: Int64s = np.zeros(capacity, np.int64)
        self.generation: Int64s = np.zeros(capacity, np.int64)
        self.replies_kept = replies_kept
        self._kept_y: Float32s = np.zeros((capacity, replies_kept, num_outputs), np.float32)
        self._kept_prints: Prints = np.zeros((capacity, replies_kept), np.uint64)
        self._weights = _weights(num_inputs + 1)
        self._slots: dict[str, int] = {}
        self._keys: dict[int, str] = {}
        self._expired: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._slots)

    def find(self, key: str) -> int | None:
        """Returns the slot of the session with this key, None when there is none."""
        return self._slots.get(key)

    def key(self, slot: int) -> str:
        """Returns the key of the session in a slot."""
        return self._keys[slot]

    def open(self, key: str, slot: int, now_ns: int) -> None:
        """Begins a session, at step 0, in a slot of its own."""
        self._slots[key] = slot
        self._keys[slot] = key
        self._expired.pop(key, None)
        self.restart(slot)
        self.last_used[slot] = now_ns

    def restart(self, slot: int) -> None:
        """Puts a session back to step 0; earlier replies are forgotten."""
        self.next_step[slot] = 0
        self.last_time[slot] = 0

    def close(self, slot: int) -> None:
        """Ends the session in a slot; the slot may be used again."""
        del self._slots[self._keys.pop(slot)]
        self.generation[slot] += 1

    def expire(self, slot: int) -> None:
        """Ends a session that was idle too long, and remembers for a while that it was so."""
        self._expired[self._keys[slot]] = None
        if len(self._expired) > _MAX_REMEMBERED:
            self._expired.popitem(last=False)
        self.close(slot)

    def has_expired(self, key: str) -> bool:
        """Tells whether a session of this key expired lately."""
        return key in self._expired

    def idle_since(self, instant_ns: int) -> list[int]:
        """Returns the slots of the sessions not used since `instant_ns`."""
        slots = np.fromiter(self._keys, np.int64, len(self._keys))
        return [int(slot) for slot in slots[self.last_used[slots] < instant_ns]]

    def fingerprints(self, x: Float32s, times: Int64s) -> Prints:
        """Returns a 64-bit print of each input row, by which a repeated step is told from another one.

        Multilinear hashing with fixed weights: the same on every machine, one pass for a whole batch.

        Args:
            x: [N, F].
            times: [N], as the request gave them, TIME_ABSENT included; zeros for models without time.
        """
        words = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)  # (N, F)
        prints: Prints = words @ self._weights[:-1]  # (N,), modulo 2**64
        prints += times.view(np.uint64) * self._weights[-1]
        return prints

    def apply(
        self,
        slots: Int64s,
        lengths: Int64s,
        x: Float32s,
        given_times: Int64s,
        times: Int64s,
        y: Float32s,
        now_ns: int,
    ) -> None:
        """Moves B sessions on by the steps their states have taken, and keeps the replies.

        Args:
            slots, lengths: [B], the sessions, each once, and how many steps each took, at least one.
            x, y: [B, T, F] and [B, T, O]; of no meaning past lengths.
            given_times, times: [B, T], as the requests gave them and as the model got them.
            now_ns: monotonic ns.
        """
        first = self.next_step[slots]  # (B,)
        self.next_step[slots] = first + lengths
        self.last_used[slots] = now_ns
        if x.shape[1] == 1:
            self.last_time[slots] = times[:, 0]
            self._keep(slots, first, x[:, 0], given_times[:, 0], y[:, 0])
            return
        self.last_time[slots] = times[np.arange(len(slots)), lengths - 1]
        left = lengths[:, None] - np.arange(x.shape[1])  # (B, T), steps from here to the last
        row, step = np.nonzero((left > 0) & (left <= self.replies_kept))
        at = row, step
        self._keep(slots[row], first[row] + step, x[at], given_times[at], y[at])

    def _keep(self, slots: Int64s, indexes: Int64s, x: Float32s, times: Int64s, y: Float32s) -> None:
        """Keeps the replies y [N, O] to steps of sessions: inputs x [N, F], times [N] as given."""
        rings = indexes % self.replies_kept
        self._kept_prints[slots, rings] = self.fingerprints(x, times)
        self._kept_y[slots, rings] = y

    def kept(self, slot: int, index: int) -> tuple[int, Float32s] | None:
        """Returns print and prediction of an applied step; None when they are no longer kept."""
        if index < int(self.next_step[slot]) - self.replies_kept:
            return None
        ring = index % self.replies_kept
        return int(self._kept_prints[slot, ring]), self._kept_y[slot, ring].copy()


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
