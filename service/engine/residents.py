"""One model's sessions in memory, with their states: opening, adopting from the store, ending, evicting.

A session leaves memory when its client closes it, when it expires, is fenced or moves to another version, and
when it is evicted or handed over to another server; then it can come back from the store. Does not know
queues, batches, nor how the store works.
"""

from collections.abc import Callable

import numpy as np

from service import errors
from service.arrays import Float32s, Int64s
from service.config import Config
from service.engine import session_key, snapshot
from service.engine.progress import Progress, ProgressTable
from service.engine.rollback import Rollback
from service.engine.session_table import SessionTable
from service.engine.slots import Slots
from service.engine.snapshot import Model, Snapshot
from service.errors import Reason
from service.runtime.runner import Runner
from service.telemetry.metrics import ModelMetrics

OnEnd = Callable[[str, int], None]


class Residents:
    """The sessions of one model that are in memory.

    Args:
        runner: has the model and the states.
        settings: has the bounds.
        metrics: the model's instruments.
        clock: monotonic nanoseconds.
    """

    def __init__(
        self, runner: Runner, settings: Config, metrics: ModelMetrics, *, clock: Callable[[], int]
    ) -> None:
        about, capacity = runner.artifact.manifest, settings.max_resident_sessions
        self.model = Model(
            name=runner.artifact.name,
            version=runner.artifact.version,
            digest=runner.artifact.digest,
            layout=snapshot.layout_of(about),
            state_size=about.state_size,
            num_outputs=len(about.outputs),
        )
        progress = ProgressTable(capacity, len(about.inputs), len(about.outputs), settings.replies_kept)
        self.sessions = SessionTable(capacity, progress)
        self.rollback = Rollback(self.sessions, runner)
        self.on_end: OnEnd | None = None
        """Called with key and epoch when a session that the store may have ends for good."""
        self._slots = Slots(capacity)
        self._runner = runner
        self._metrics = metrics
        self._clock = clock

    @property
    def has_free_slot(self) -> bool:
        """Whether there is room in memory for another session."""
        return self._slots.num_taken < self._slots.capacity

    @property
    def max_sessions(self) -> int:
        """How many sessions memory has room for."""
        return self._slots.capacity

    # -- Sessions come and go --------------------------------------------------------------------------

    def open(self, key: str, epoch: int = 1) -> int:
        """Opens a session and returns its slot.

        Raises:
            StreamcellError: SESSIONS_FULL.
        """
        slot = self._enter(key, epoch)
        self._runner.clear(slot)
        self._metrics.sessions_opened.inc()
        return slot

    def open_ephemeral(self, account: int) -> int:
        """Opens a session for one piece of work, which no key finds, and returns its slot.

        Raises:
            StreamcellError: SESSIONS_FULL.
        """
        slot = self._take_slot()
        self.sessions.open_ephemeral(slot, account)
        self._runner.clear(slot)
        return slot

    def adopt(self, key: str, epoch: int, session: Snapshot, *, is_new: bool) -> int:
        """Adds a session that the store has, and returns its slot; `is_new` if the session was just opened.

        Raises:
            StreamcellError: SESSIONS_FULL.
        """
        slot = self._enter(key, epoch)
        self.install(slot, session)
        self.sessions.durability.set_stored(
            slot,
            int(session.progress.next_step[0]),
            is_durable=session.is_durable,
            # On another model than before: the next owner must find that in the store.
            is_changed=session.model != self.model,
        )
        (self._metrics.sessions_opened if is_new else self._metrics.sessions_restored).inc()
        return slot

    def install(self, slot: int, session: Snapshot) -> None:
        """Overwrites a session's state and progress with those of a snapshot."""
        self._runner.put(np.array([slot]), session.state[None])
        self.sessions.progress.put(slot, session.progress)

    def close(self, slot: int) -> int:
        """Closes a session and returns how many steps it had. Called from a control."""
        num_steps = self.sessions.progress.next_step.item(slot)
        self._report_end(slot)
        self.sessions.close(slot)
        self._release(slot)
        return num_steps

    def expire(self, slot: int) -> None:
        """Ends a session that was idle for too long."""
        self._report_end(slot)
        self._metrics.sessions_expired.inc()
        self.sessions.end(slot, Reason.SESSION_EXPIRED)
        self._release(slot)

    def fence(self, slot: int) -> None:
        """Ends a session here that another server has taken over."""
        self._metrics.sessions_fenced.inc()
        self.sessions.end(slot, Reason.SESSION_FENCED)
        self._release(slot)

    def evict(self, slot: int) -> None:
        """Removes a session from memory whose present state the store has."""
        self._metrics.sessions_evicted.inc()
        self._leave(slot)

    def hand_over(self, slot: int) -> None:
        """Removes a session from memory for another server that asked for it; the store has it."""
        self._metrics.sessions_handed_over.inc()
        self._leave(slot)

    def reset(self, slot: int) -> None:
        """Puts a session back to its start. Called from a control."""
        self._runner.clear(slot)
        self.sessions.progress.restart(slot)
        self.sessions.durability.mark_restarted(slot)

    # -- Between versions of the model -----------------------------------------------------------------

    def move_to(self, other: "Residents", slots: list[int]) -> list[tuple[int, int]]:
        """Moves idle sessions to the residents of another version, as far as there is room.

        The slots here are not used again until `free`, so that their columns still show the moved sessions.

        Returns:
            The new slot and generation of each session that moved, the first ones of `slots`.
        """
        taken = [other._slots.take() for _ in slots]
        new_slots = np.array([slot for slot in taken if slot is not None], np.int64)
        old_slots = np.array(slots[: len(new_slots)], np.int64)
        if not len(new_slots):
            return []
        other._runner.put(new_slots, self._runner.read(old_slots))
        other.sessions.move_from(self.sessions, old_slots, new_slots)
        other._metrics.sessions_migrated.inc(len(new_slots))
        for each in (self, other):
            each._metrics.sessions.set(len(each.sessions))
        return list(zip(new_slots.tolist(), other.sessions.generation[new_slots].tolist(), strict=True))

    def free(self, slots: list[int]) -> None:
        """Frees slots whose sessions have moved to another version."""
        for slot in slots:
            self._slots.give_back(slot)

    def unload(self) -> None:
        """Frees the model and the states. Only `sessions` may be read afterwards."""
        self.on_end = None
        # Streams may refer to this object for as long as their clients like.
        del self._runner, self.rollback

    # -- Sessions as bytes -----------------------------------------------------------------------------

    def export(self, slots: Int64s) -> tuple[list[bytes], Int64s]:
        """Returns sessions [N] as bytes, and how many steps each of them holds.

        A session in the middle of a whole block, which may yet fail, is exported as it was before the block.
        """
        sessions = self.sessions
        progress, states = sessions.progress.read(slots), self._runner.read(slots)
        self.rollback.restore_copies(slots, progress, states)
        records = snapshot.encode(
            self.model,
            [session_key.id_of(sessions.key(slot)) for slot in slots.tolist()],
            progress,
            states,
            sessions.durability.is_durable[slots],
        )
        return records, progress.next_step

    def blank(self, session_id: str, *, is_durable: bool) -> Snapshot:
        """Returns the snapshot of a session that has had no step."""
        nothing, ring = np.zeros(1, np.int64), self.sessions.progress.replies_kept
        progress = Progress(
            next_step=nothing,
            last_time=nothing,
            reply_start=nothing,
            reply_y=np.zeros((1, ring, self.model.num_outputs), np.float32),
            reply_prints=np.zeros((1, ring), np.uint64),
        )
        state: Float32s = np.zeros(self.model.state_size, np.float32)
        return Snapshot(session_id, self.model, is_durable, progress=progress, state=state)

    def _enter(self, key: str, epoch: int) -> int:
        slot = self._take_slot()
        self.sessions.open(key, slot, self._clock(), epoch)
        self._metrics.sessions.set(len(self.sessions))
        return slot

    def _take_slot(self) -> int:
        slot = self._slots.take()
        if slot is None:
            raise errors.refusal(Reason.SESSIONS_FULL, max_resident_sessions=self._slots.capacity)
        return slot

    def _report_end(self, slot: int) -> None:
        if self.on_end is not None and self.sessions.durability.is_tracked[slot]:
            self.on_end(self.sessions.key(slot), self.sessions.ownership.epoch.item(slot))

    def _leave(self, slot: int) -> None:
        self.sessions.close(slot)
        self._release(slot)

    def _release(self, slot: int) -> None:
        self._slots.give_back(slot)
        self._metrics.sessions.set(len(self.sessions))
