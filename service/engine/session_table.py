"""Which sessions of one model are in memory: their keys, slots and generations, and when each was last used.

Parts of the table are the sessions' progress, what the store has of them, who owns them, and why earlier
sessions ended.
Does not know state rows, the model, nor what time it is: slots and times are passed in.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from service.accounts import number_of
from service.arrays import Flags, Int64s
from service.engine.durability import Durability
from service.engine.endings import Endings
from service.engine.ownership import Ownership
from service.engine.progress import AppliedSteps, ProgressTable
from service.engine.session_key import principal_of
from service.errors import Reason


class SessionTable:
    """Up to `capacity` sessions, each in a slot of its own.

    The generation of a slot counts the slot's sessions: a reference to an earlier session has an older one.
    All may read `generation`, `last_used` (monotonic ns) and `account`; this class alone writes them.
    """

    def __init__(self, capacity: int, progress: ProgressTable) -> None:
        self.progress = progress
        self.durability = Durability(capacity)
        self.ownership = Ownership(capacity)
        self.endings = Endings()
        self.generation: Int64s = np.zeros(capacity, np.int64)
        self.last_used: Int64s = np.zeros(capacity, np.int64)
        self.account: Int64s = np.zeros(capacity, np.int64)
        self._slots: dict[str, int] = {}
        self._keys: dict[int, str] = {}
        self._num_by_account: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._slots)

    def find(self, key: str) -> int | None:
        """Returns the slot of the session with this key; None if there is none."""
        return self._slots.get(key)

    def num_of(self, account: int) -> int:
        """Returns how many sessions an account has."""
        return self._num_by_account[account]

    def key(self, slot: int) -> str:
        """Returns the key of the session in a slot."""
        return self._keys[slot]

    def is_live(self, slot: int, generation: int) -> bool:
        """Returns whether the session that had a slot at a generation is still there."""
        return self.generation.item(slot) == generation

    def open(self, key: str, slot: int, now_ns: int, epoch: int = 1) -> None:
        """Opens a session at step 0 in a free slot."""
        self._enter(key, slot)
        self.endings.forget(key)
        self.progress.restart(slot)
        self.last_used[slot] = now_ns
        self.durability.open(slot, now_ns)
        if self.durability.is_enabled:
            self.ownership.acquire(slot, epoch, now_ns)

    def open_ephemeral(self, slot: int, account: int) -> None:
        """Opens a session for one piece of work: without a key, not counted, and never stored."""
        self.account[slot] = account
        self.progress.restart(slot)

    def touch(self, slot: int, now_ns: int) -> None:
        """Records that a session was used."""
        self.last_used[slot] = now_ns

    def apply(self, steps: AppliedSteps, now_ns: int) -> None:
        """Moves sessions on by the steps that were applied to their states."""
        self.progress.apply(steps)
        self.last_used[steps.slots] = now_ns
        self.durability.mark_stepped(steps.slots)

    def close(self, slot: int) -> None:
        """Ends the session in a slot; the slot may be used again."""
        key = self._keys.pop(slot, None)
        if key is not None:
            del self._slots[key]
            self._leave(slot)
        self.endings.forget_slot(slot)
        self.generation[slot] += 1
        self.durability.close(slot)

    def end(self, slot: int, reason: Reason) -> None:
        """Ends a session that its client did not close, and remembers why for a while."""
        key = self._keys[slot]
        self.close(slot)
        self.endings.remember(key, reason, slot)

    def remember_endings(self, source: "SessionTable") -> None:
        """Takes over why another version's sessions ended, except for keys that are live here."""
        self.endings.remember_all(source.endings, live=self._slots)

    def are_stored_whole(self, slots: Int64s) -> Flags:
        """Returns of which sessions [N] the store has the present state: no write is due or under way."""
        is_changed, num_durable = self.durability.is_changed[slots], self.durability.num_durable[slots]
        are_whole: Flags = ~is_changed & (num_durable == self.progress.next_step[slots])
        return are_whole

    def slots(self) -> Iterator[int]:
        """Yields the slots of all sessions; no session may open or end meanwhile."""
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

    def move_from(self, source: "SessionTable", source_slots: Int64s, slots: Int64s) -> None:
        """Moves N sessions here from another version's table, from its slots [N] to `slots` [N]."""
        self.progress.copy_from(source.progress, source_slots, slots)
        self.last_used[slots] = source.last_used[source_slots]
        self.durability.copy_from(source.durability, source_slots, slots)
        if self.durability.is_enabled:
            self.ownership.copy_from(source.ownership, source_slots, slots)
        for slot, source_slot in zip(slots.tolist(), source_slots.tolist(), strict=True):
            key = source.key(source_slot)
            self._enter(key, slot)
            self.endings.forget(key)
            source.close(source_slot)

    def _enter(self, key: str, slot: int) -> None:
        self._slots[key], self._keys[slot] = slot, key
        account = number_of(principal_of(key))
        self.account[slot] = account
        self._num_by_account[account] += 1

    def _leave(self, slot: int) -> None:
        account = self.account.item(slot)
        self._num_by_account[account] -= 1
        if not self._num_by_account[account]:
            del self._num_by_account[account]
