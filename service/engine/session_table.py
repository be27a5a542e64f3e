"""Which sessions of one model are in memory: their keys, slots and generations, and when each was last used.

Their progress, what of them is in the store and why earlier ones ended are parts of the table. Does not know
state rows, the model, nor when anything happens: slots and times are passed in.
"""

from collections.abc import Iterator

import numpy as np

from service.arrays import Int64s
from service.engine.durability import Durability
from service.engine.endings import Endings
from service.engine.progress import AppliedSteps, ProgressTable
from service.errors import Reason


class SessionTable:
    """Up to `capacity` sessions, each in a slot of its own.

    A slot's generation counts its sessions, so that a number that was kept from an earlier session is found
    out. `generation` and `last_used` (monotonic ns) are read by others and written here alone.
    """

    def __init__(self, capacity: int, progress: ProgressTable) -> None:
        self.progress = progress
        self.durability = Durability(capacity)
        self.endings = Endings()
        self.generation: Int64s = np.zeros(capacity, np.int64)
        self.last_used: Int64s = np.zeros(capacity, np.int64)
        self._slots: dict[str, int] = {}
        self._keys: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def find(self, key: str) -> int | None:
        """Returns the slot of the session with this key, None when there is none."""
        return self._slots.get(key)

    def key(self, slot: int) -> str:
        """Returns the key of the session in a slot."""
        return self._keys[slot]

    def is_live(self, slot: int, generation: int) -> bool:
        """Returns whether the session that had a slot at a generation is still there."""
        return self.generation.item(slot) == generation

    def open(self, key: str, slot: int, now_ns: int, epoch: int = 1) -> None:
        """Begins a session, at step 0, in a slot of its own."""
        self._slots[key] = slot
        self._keys[slot] = key
        self.endings.forget(key)
        self.progress.restart(slot)
        self.last_used[slot] = now_ns
        self.durability.open(slot, epoch, now_ns)

    def open_ephemeral(self, slot: int) -> None:
        """Begins a session for one piece of work: it has no key, is not counted, and goes to no store."""
        self.progress.restart(slot)

    def touch(self, slot: int, now_ns: int) -> None:
        """Records that a session was used."""
        self.last_used[slot] = now_ns

    def apply(self, steps: AppliedSteps, now_ns: int) -> None:
        """Moves sessions on by the steps that their states have taken."""
        self.progress.apply(steps)
        self.last_used[steps.slots] = now_ns
        self.durability.mark_stepped(steps.slots)

    def close(self, slot: int) -> None:
        """Ends the session in a slot; the slot may be used again."""
        key = self._keys.pop(slot, None)
        if key is not None:
            del self._slots[key]
        self.endings.forget_slot(slot)
        self.generation[slot] += 1
        self.durability.close(slot)

    def end(self, slot: int, reason: Reason) -> None:
        """Ends a session that its client did not close, and remembers for a while why."""
        key = self._keys[slot]
        self.close(slot)
        self.endings.remember(key, reason, slot)

    def remember_endings(self, others: "SessionTable") -> None:
        """Remembers what became of another version's sessions, except of those that are live here."""
        self.endings.remember_all(others.endings, live=self._slots)

    def is_stored_whole(self, slot: int) -> bool:
        """Returns whether the store has a session as it stands: no write of it is due or under way."""
        if self.durability.is_changed.item(slot):
            return False
        return self.durability.num_durable.item(slot) == self.progress.next_step.item(slot)

    def slots(self) -> Iterator[int]:
        """Yields the slots of all sessions; none may come or go meanwhile."""
        return iter(self._keys)

    def all_slots(self) -> Int64s:
        """Returns the slots of all sessions."""
        return np.fromiter(self._keys, np.int64, len(self._keys))

    def idle_since(self, instant_ns: int) -> list[int]:
        """Returns the slots of the sessions not used since an instant."""
        slots = self.all_slots()
        return [int(slot) for slot in slots[self.last_used[slots] < instant_ns]]

    def least_recently_used(self, count: int) -> Int64s:
        """Returns the slots of the `count` sessions that were idle for longest, the longest first."""
        slots = self.all_slots()
        used = self.last_used[slots]
        if count < len(slots):
            first = np.argpartition(used, count)[:count]
            slots, used = slots[first], used[first]
        return slots[np.argsort(used)]

    def move_from(self, others: "SessionTable", theirs: Int64s, slots: Int64s) -> None:
        """Takes over sessions of another version of the model where they stand; there they end.

        Args:
            theirs, slots: [N], where the sessions are there, and where they go here.
        """
        self.progress.copy_from(others.progress, theirs, slots)
        self.last_used[slots] = others.last_used[theirs]
        self.durability.copy_from(others.durability, theirs, slots)
        for slot, there in zip(slots.tolist(), theirs.tolist(), strict=True):
            key = others.key(there)
            self._slots[key], self._keys[slot] = slot, key
            self.endings.forget(key)
            others.close(there)
