"""What of each session is in the store: its durable steps, its epoch, what has changed since the last write.

Without a store nothing is recorded, and the columns take no memory. Does not know the store, nor when it is
written to: slots and times are passed in.
"""

from typing import NamedTuple

import numpy as np

from service.arrays import Flags, Int64s


class Written(NamedTuple):
    """N sessions of which a write to the store has arrived, as they were when the write was put together."""

    slots: Int64s
    restarts: Int64s
    next_steps: Int64s


class Durability:
    """Columns for up to `capacity` sessions, indexed by slot.

    Others read them and change them by the verbs.
    """

    def __init__(self, capacity: int) -> None:
        # np.zeros takes address space, not memory: pages come with the first write.
        self.num_durable: Int64s = np.zeros(capacity, np.int64)
        """How many steps of each session are in the store."""
        self.epoch: Int64s = np.zeros(capacity, np.int64)
        """How many owners each session has had; the store refuses a write at an older epoch."""
        self.is_changed: Flags = np.zeros(capacity, np.bool_)
        """Which sessions have changed since they were last written."""
        self.is_durable: Flags = np.zeros(capacity, np.bool_)
        """Which sessions are answered only once their steps are in the store."""
        self.is_tracked: Flags = np.zeros(capacity, np.bool_)
        """Which sessions go to the store at all; ephemeral ones do not."""
        self.written: Int64s = np.zeros(capacity, np.int64)
        """When each session was last written, monotonic ns."""
        self.restarts: Int64s = np.zeros(capacity, np.int64)
        """How often each slot's session was restarted; a write from before a restart does not count."""
        self.is_enabled = False
        """Whether there is a store."""
        self.trouble = ""
        """Why the store cannot be used now; empty while it can."""

    def enable(self) -> None:
        """Begins to record: there is a store."""
        self.is_enabled = True

    def set_trouble(self, why: str) -> None:
        """Records why the store cannot be used now; an empty text that it can."""
        self.trouble = why

    def open(self, slot: int, epoch: int, now_ns: int) -> None:
        """Begins to track a session that the store has as it stands."""
        if self.is_enabled:
            self.is_tracked[slot] = True
            self.is_changed[slot] = False
            self.num_durable[slot] = 0
            self.epoch[slot] = epoch
            self.written[slot] = now_ns

    def close(self, slot: int) -> None:
        """Ends tracking the session in a slot."""
        if self.is_enabled:
            self.is_tracked[slot] = self.is_changed[slot] = self.is_durable[slot] = False

    def set_stored(self, slot: int, num_steps: int, *, is_durable: bool, is_changed: bool) -> None:
        """Records what the store has of a session that was just opened from a row."""
        self.num_durable[slot] = num_steps
        self.is_durable[slot] = is_durable
        self.is_changed[slot] = is_changed

    def make_durable(self, slot: int) -> None:
        """From now on the session's steps are answered once they are in the store."""
        self.is_durable[slot] = True

    def set_epoch(self, slot: int, epoch: int) -> None:
        """Records the epoch at which this server owns a session's row; the session is to be written anew."""
        self.epoch[slot] = epoch
        self.is_changed[slot] = True

    def mark_changed(self, slots: Int64s) -> None:
        """Marks sessions [N] for the next write."""
        self.is_changed[slots] = True

    def mark_stepped(self, slots: Int64s) -> None:
        """Marks those of the sessions [N] that go to the store for the next write; each has moved on."""
        if self.is_enabled:
            self.is_changed[slots] = self.is_tracked[slots]

    def mark_taken(self, slots: Int64s) -> None:
        """Marks sessions [N] as unchanged: a write holds them as they are now."""
        self.is_changed[slots] = False

    def mark_restarted(self, slot: int) -> None:
        """Records that what the store has of a session, or is being given, is from before a restart."""
        if self.is_enabled:
            self.num_durable[slot] = 0
            self.restarts[slot] += 1
            self.is_changed[slot] = True

    def set_written(self, slot: int, instant_ns: int) -> None:
        """Records when a session was last written, monotonic ns."""
        self.written[slot] = instant_ns

    def record(self, written: Written, now_ns: int) -> None:
        """Records that a write has arrived in the store, of sessions that are still in their slots."""
        self.written[written.slots] = now_ns
        same = self.restarts[written.slots] == written.restarts
        self.num_durable[written.slots[same]] = written.next_steps[same]

    def record_steps(self, slot: int, restarts: int, num_steps: int) -> None:
        """Records a write that has arrived in the store, of a session that moved here meanwhile."""
        if self.restarts[slot] == restarts:
            self.num_durable[slot] = num_steps

    @property
    def num_changed(self) -> int:
        """How many sessions have changed since they were last written."""
        return int(np.count_nonzero(self.is_changed))

    def changed_slots(self) -> Int64s:
        """Returns the slots of the sessions that have changed since they were last written."""
        return np.flatnonzero(self.is_changed)

    def written_before(self, slots: Int64s, instant_ns: int) -> Int64s:
        """Returns those of the slots whose sessions were last written before an instant."""
        stale: Int64s = slots[self.written[slots] < instant_ns]
        return stale

    def copy_from(self, others: "Durability", theirs: Int64s, slots: Int64s) -> None:
        """Takes over what is recorded of sessions of another version: `theirs` [N] there, `slots` [N] here.

        They are written anew, so that whoever takes them over next finds the version that they run on.
        """
        if not self.is_enabled:
            return
        self.num_durable[slots] = others.num_durable[theirs]
        self.epoch[slots] = others.epoch[theirs]
        self.written[slots] = others.written[theirs]
        self.restarts[slots] = others.restarts[theirs]
        self.is_tracked[slots] = others.is_tracked[theirs]
        self.is_durable[slots] = others.is_durable[theirs]
        self.is_changed[slots] = True
