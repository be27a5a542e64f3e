"""What the store has of each session: how many steps, and whether the session changed since.

Without a store nothing is recorded, and the columns take no memory. Does not know the store, nor when it is
written to: slots and times are passed in.
"""

from typing import NamedTuple

import numpy as np

from service.arrays import Flags, Int64s


class Written(NamedTuple):
    """N sessions that a finished write to the store holds, as they were when the write was put together."""

    slots: Int64s
    num_restarts: Int64s
    next_steps: Int64s


class Durability:
    """Columns for up to `capacity` sessions, indexed by slot. All may read them; this class alone writes."""

    def __init__(self, capacity: int) -> None:
        # np.zeros takes address space, not memory: pages come with the first write.
        self.num_durable: Int64s = np.zeros(capacity, np.int64)
        """How many steps of each session are in the store."""
        self.is_changed: Flags = np.zeros(capacity, np.bool_)
        """Which sessions have changed since they were last written."""
        self.is_durable: Flags = np.zeros(capacity, np.bool_)
        """Which sessions are answered only once their steps are in the store."""
        self.is_tracked: Flags = np.zeros(capacity, np.bool_)
        """Which sessions are written to the store at all; ephemeral ones are not."""
        self._last_written: Int64s = np.zeros(capacity, np.int64)
        """When each session was last written, monotonic ns."""
        self.num_restarts: Int64s = np.zeros(capacity, np.int64)
        """How often each slot's sessions were restarted; a write from before a restart does not count."""
        self.is_enabled = False
        """Whether there is a store."""
        self.trouble = ""
        """Why the store cannot be used now; empty while it can."""

    def enable(self) -> None:
        """Starts recording, because there is a store."""
        self.is_enabled = True

    def set_trouble(self, why: str) -> None:
        """Records why the store cannot be used now; an empty text means that it can."""
        self.trouble = why

    def open(self, slot: int, now_ns: int) -> None:
        """Starts tracking a session that the store has in its present state."""
        if self.is_enabled:
            self.is_tracked[slot] = True
            self.is_changed[slot] = False
            self.num_durable[slot] = 0
            self._last_written[slot] = now_ns

    def close(self, slot: int) -> None:
        """Stops tracking the session in a slot."""
        if self.is_enabled:
            self.is_tracked[slot] = self.is_changed[slot] = self.is_durable[slot] = False

    def set_stored(self, slot: int, num_steps: int, *, is_durable: bool, is_changed: bool) -> None:
        """Records what the store has of a session that was just opened from the store."""
        self.num_durable[slot] = num_steps
        self.is_durable[slot] = is_durable
        self.is_changed[slot] = is_changed

    def make_durable(self, slot: int) -> None:
        """Makes a session durable: from now on its steps are answered once they are in the store.

        Marks the session for the next write: the store must know too that it is durable.
        """
        if not self.is_durable[slot]:
            self.is_durable[slot] = self.is_changed[slot] = True

    def mark_changed(self, slots: Int64s) -> None:
        """Marks sessions [N] for the next write."""
        self.is_changed[slots] = True

    def mark_stepped(self, slots: Int64s) -> None:
        """Marks sessions [N] that have taken steps for the next write, except the ephemeral ones."""
        if self.is_enabled:
            self.is_changed[slots] = self.is_tracked[slots]

    def mark_unchanged(self, slots: Int64s) -> None:
        """Marks sessions [N] as unchanged, because a write that is under way holds their present states."""
        self.is_changed[slots] = False

    def mark_restarted(self, slot: int) -> None:
        """Records that a session restarted, so that what the store has, or is being sent, is out of date."""
        if self.is_enabled:
            self.num_durable[slot] = 0
            self.num_restarts[slot] += 1
            self.is_changed[slot] = True

    def forget_stored(self, slot: int) -> None:
        """Records that the store may have none of a session's steps, until the next write."""
        self.num_durable[slot] = 0

    def set_last_written(self, slot: int, instant_ns: int) -> None:
        """Records when a session was last written, monotonic ns."""
        self._last_written[slot] = instant_ns

    def record_write(self, written: Written, now_ns: int) -> None:
        """Records a finished write of sessions that are still in their slots."""
        self._last_written[written.slots] = now_ns
        same = self.num_restarts[written.slots] == written.num_restarts
        self.num_durable[written.slots[same]] = written.next_steps[same]

    def record_moved_write(self, slot: int, num_restarts: int, num_steps: int) -> None:
        """Records a finished write of a session that moved into `slot` while the write was under way."""
        if self.num_restarts[slot] == num_restarts:
            self.num_durable[slot] = num_steps

    @property
    def num_changed(self) -> int:
        """How many sessions have changed since they were last written."""
        return int(np.count_nonzero(self.is_changed))

    def changed_slots(self) -> Int64s:
        """Returns the slots of the sessions that have changed since they were last written."""
        return np.flatnonzero(self.is_changed)

    def written_before(self, slots: Int64s, instant_ns: int) -> Int64s:
        """Returns the slots among `slots` whose sessions were last written before an instant."""
        stale: Int64s = slots[self._last_written[slots] < instant_ns]
        return stale

    def copy_from(self, source: "Durability", source_slots: Int64s, slots: Int64s) -> None:
        """Copies what another version recorded of N sessions, from its slots [N] to `slots` [N].

        Marks the sessions for the next write, so that a later owner finds the version that they run on.
        """
        if not self.is_enabled:
            return
        self.num_durable[slots] = source.num_durable[source_slots]
        self._last_written[slots] = source._last_written[source_slots]
        self.num_restarts[slots] = source.num_restarts[source_slots]
        self.is_tracked[slots] = source.is_tracked[source_slots]
        self.is_durable[slots] = source.is_durable[source_slots]
        self.is_changed[slots] = True
