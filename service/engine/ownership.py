"""The epoch at which this server owns each session's row, since when, and when the store last confirmed it.

Without a store nothing is recorded. Does not know the store: slots, epochs and times are passed in.
"""

import numpy as np

from service.arrays import Int64s


class Ownership:
    """Columns for up to `capacity` sessions, by slot. All may read `epoch`; this class alone writes."""

    def __init__(self, capacity: int) -> None:
        # np.zeros takes address space, not memory: pages come with the first write.
        self.epoch: Int64s = np.zeros(capacity, np.int64)
        """How many owners each session has had; the store refuses a write at an older epoch."""
        self._since: Int64s = np.zeros(capacity, np.int64)  # monotonic ns
        self._confirmed: Int64s = np.zeros(capacity, np.int64)  # monotonic ns

    def acquire(self, slot: int, epoch: int, now_ns: int) -> None:
        """Records that this server has come to own a session's row, at an epoch."""
        self.epoch[slot] = epoch
        self._since[slot] = self._confirmed[slot] = now_ns

    def since_ns(self, slot: int) -> int:
        """Returns since when a session's row has been this server's, monotonic ns."""
        return self._since.item(slot)

    def confirm(self, slots: Int64s, now_ns: int) -> None:
        """Records that sessions [N] are still this server's: the store accepted a write at their epochs."""
        self._confirmed[slots] = now_ns

    def is_confirmed_since(self, slot: int, instant_ns: int) -> bool:
        """Returns whether the store has confirmed the owner of a session since an instant."""
        return self._confirmed.item(slot) >= instant_ns

    def not_confirmed_since(self, slots: Int64s, instant_ns: int) -> Int64s:
        """Returns the slots among `slots` whose owner the store has not confirmed since an instant."""
        unconfirmed: Int64s = slots[self._confirmed[slots] < instant_ns]
        return unconfirmed

    def copy_from(self, source: "Ownership", source_slots: Int64s, slots: Int64s) -> None:
        """Copies what another version recorded of N sessions, from its slots [N] to `slots` [N]."""
        self.epoch[slots] = source.epoch[source_slots]
        self._since[slots] = source._since[source_slots]
        self._confirmed[slots] = source._confirmed[source_slots]
