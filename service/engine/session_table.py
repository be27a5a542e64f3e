"""The sessions of one model: who they are and where they stand, in columns indexed by slot.

Owns ids, counters, times, the replies kept for repeated steps, and what of it is in the store. Does not know
the state rows, the model, the store, nor when anything happens: slots and times are passed in.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from service.arrays import Flags, Float32s, Int64s, Prints
from service.errors import Reason

TIME_ABSENT = -(1 << 63)  # in a column of times: the request gave none
MAX_TIME_NS = 1 << 62  # the year 2116; and the same before 1970
_STANDING = ("next_step", "last_time", "last_used", "_kept_from", "_kept_y", "_kept_prints")
_STORED = ("num_durable", "epoch", "written", "restarts", "is_kept", "is_durable")
_MAX_REMEMBERED = 10_000  # keys of ended sessions remembered, to tell what became of them


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """Where sessions stand, apart from their state rows: N of them, R replies kept of each.

    A reply to the step of index i is at `i % R`; those of the steps before `kept_from` are not there.
    """

    next_step: Int64s  # (N,)
    last_time: Int64s  # (N,), Unix ns
    kept_from: Int64s  # (N,)
    kept_y: Float32s  # (N, R, O)
    kept_prints: Prints  # (N, R)

    def put(self, at: int, other: "Standing") -> None:
        """Has one of the sessions stand where another stood: `other` holds one, with as many replies."""
        self.next_step[at] = other.next_step[0]
        self.last_time[at] = other.last_time[0]
        self.kept_from[at] = other.kept_from[0]
        self.kept_y[at] = other.kept_y[0]
        self.kept_prints[at] = other.kept_prints[0]


class Sessions:
    """Columns for up to `capacity` sessions whose predictions have `num_outputs` values.

    `next_step`, `last_time` and `last_used` (monotonic ns) can be indexed by one slot or an array of slots.
    A `generation` counts a slot's sessions, so that a number kept from an earlier one is recognised.

    For those that `is_kept` in a store: `num_durable` steps are in it, `epoch` counts the owners so far,
    `is_changed` since what was written last, `written` (monotonic ns) when that was; with `is_durable` a step
    is answered only once it is in the store. `restarts` counts a slot's restarts: what the store has of
    before one tells nothing of what came after. Columns that nobody writes take no memory.
    """

    def __init__(self, capacity: int, num_inputs: int, num_outputs: int, replies_kept: int) -> None:
        # np.zeros takes address space, not memory: pages come with the first write.
        self.next_step: Int64s = np.zeros(capacity, np.int64)
        self.last_time: Int64s = np.zeros(capacity, np.int64)
        self.last_used: Int64s = np.zeros(capacity, np.int64)
        self.generation: Int64s = np.zeros(capacity, np.int64)
        self.num_durable: Int64s = np.zeros(capacity, np.int64)
        self.epoch: Int64s = np.zeros(capacity, np.int64)
        self.written: Int64s = np.zeros(capacity, np.int64)
        self.restarts: Int64s = np.zeros(capacity, np.int64)
        self.is_kept: Flags = np.zeros(capacity, np.bool_)
        self.is_changed: Flags = np.zeros(capacity, np.bool_)
        self.is_durable: Flags = np.zeros(capacity, np.bool_)
        self.is_stored = False
        """Whether changes are taken note of, for a store."""
        self.store_trouble = ""
        """Why nothing can be stored now, and so no durable session be stepped; empty while it can."""
        self.replies_kept = replies_kept
        self._kept_from: Int64s = np.zeros(capacity, np.int64)
        self._kept_y: Float32s = np.zeros((capacity, replies_kept, num_outputs), np.float32)
        self._kept_prints: Prints = np.zeros((capacity, replies_kept), np.uint64)
        self._weights = _weights(num_inputs + 1)
        self._slots: dict[str, int] = {}
        self._keys: dict[int, str] = {}
        self._ended: OrderedDict[str, Reason] = OrderedDict()
        self._end_of: dict[int, Reason] = {}  # of the slot's last session, where that did not just close

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
        self._ended.pop(key, None)
        self.restart(slot)
        self.last_used[slot] = now_ns
        if self.is_stored:
            self.is_kept[slot] = True
            self.num_durable[slot] = 0
            self.written[slot] = now_ns
            self.is_changed[slot] = False

    def lend(self, slot: int) -> None:
        """Begins a session for one piece of work: it has no key, is not counted, and is kept in no store."""
        self.restart(slot)

    def restart(self, slot: int) -> None:
        """Puts a session back to step 0; earlier replies are forgotten."""
        self.next_step[slot] = 0
        self.last_time[slot] = 0
        self._put_kept_from(slot, 0)

    def forget_stored(self, slot: int) -> None:
        """Takes note that what the store has of a session, or is being given, is of before a restart."""
        if self.is_stored:
            self.num_durable[slot] = 0
            self.restarts[slot] += 1
            self.is_changed[slot] = True

    def close(self, slot: int) -> None:
        """Ends the session in a slot; the slot may be used again."""
        key = self._keys.pop(slot, None)
        if key is not None:
            del self._slots[key]
        self._end_of.pop(slot, None)
        self.generation[slot] += 1
        if self.is_stored:
            self.is_kept[slot] = self.is_changed[slot] = self.is_durable[slot] = False

    def end(self, slot: int, reason: Reason) -> None:
        """Ends a session that its client did not close, and remembers for a while why."""
        key = self._keys[slot]
        self.close(slot)
        self._end_of[slot] = reason
        self.remember(key, reason)

    def remember(self, key: str, reason: Reason) -> None:
        """Remembers for a while why there is no session of this key."""
        self._ended[key] = reason
        if len(self._ended) > _MAX_REMEMBERED:
            self._ended.popitem(last=False)

    def remember_all(self, others: "Sessions") -> None:
        """Remembers for a while what became of another version's sessions, too."""
        for key, reason in others._ended.items():
            if key not in self._slots:
                self.remember(key, reason)

    def end_of(self, key: str) -> Reason | None:
        """Returns why the last session of this key ended, if it was lately and not by its client."""
        return self._ended.get(key)

    def end_in(self, slot: int) -> Reason | None:
        """Returns why the last session in this slot ended, None where its client closed it."""
        return self._end_of.get(slot)

    def is_stored_whole(self, slot: int) -> bool:
        """Tells whether the store has a session as it stands: no write of it is due or under way."""
        if self.is_changed.item(slot):
            return False
        return self.num_durable.item(slot) == self.next_step.item(slot)

    def slots(self) -> Iterator[int]:
        """Yields the slots of all sessions, of which none may come or go meanwhile."""
        return iter(self._keys)

    def all_slots(self) -> Int64s:
        """Returns the slots of all sessions."""
        return np.fromiter(self._keys, np.int64, len(self._keys))

    def idle_since(self, instant_ns: int) -> list[int]:
        """Returns the slots of the sessions not used since `instant_ns`."""
        slots = self.all_slots()
        return [int(slot) for slot in slots[self.last_used[slots] < instant_ns]]

    def least_recently_used(self, count: int) -> Int64s:
        """Returns the slots of `count` sessions (or all) that were not used for longest, longest first."""
        slots = self.all_slots()
        used = self.last_used[slots]
        if count < len(slots):
            first = np.argpartition(used, count)[:count]
            slots, used = slots[first], used[first]
        return slots[np.argsort(used)]

    def read(self, slots: Int64s) -> Standing:
        """Returns where sessions stand, as copies."""
        return Standing(
            self.next_step[slots],
            self.last_time[slots],
            self._kept_from[slots],
            self._kept_y[slots],
            self._kept_prints[slots],
        )

    def put(self, slot: int, standing: Standing) -> None:
        """Has a session stand where another stood, of which `standing` holds one."""
        next_step = int(standing.next_step[0])
        self.next_step[slot] = next_step
        self.last_time[slot] = standing.last_time[0]
        num_rings = standing.kept_prints.shape[1]
        oldest = max(int(standing.kept_from[0]), next_step - num_rings)
        self._put_kept_from(slot, oldest)
        for index in range(max(oldest, next_step - self.replies_kept), next_step):
            ring, there = index % self.replies_kept, index % num_rings
            self._kept_prints[slot, ring] = standing.kept_prints[0, there]
            self._kept_y[slot, ring] = standing.kept_y[0, there]

    def take_over(self, others: "Sessions", theirs: Int64s, slots: Int64s) -> None:
        """Goes on with sessions of another version where they stand; there they end.

        Args:
            theirs, slots: [N], where they are there, and where they come to be.
        """
        for column in (*_STANDING, *(_STORED if self.is_stored else ())):
            getattr(self, column)[slots] = getattr(others, column)[theirs]
        self.is_changed[slots] = self.is_stored
        for slot, there in zip(slots.tolist(), theirs.tolist(), strict=True):
            key = others.key(there)
            self._slots[key], self._keys[slot] = slot, key
            self._ended.pop(key, None)
            others.close(there)

    def _put_kept_from(self, slot: int, index: int) -> None:
        if self._kept_from[slot] != index:
            self._kept_from[slot] = index

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
        if self.is_stored:
            self.is_changed[slots] = self.is_kept[slots]
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
        if index < max(int(self.next_step[slot]) - self.replies_kept, int(self._kept_from[slot])):
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
