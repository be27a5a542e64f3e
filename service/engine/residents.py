"""One model's sessions in memory, with their states: from opening, or from the store, until they leave.

A session leaves when its client closes it, when it ends by itself, or for the store, from where it can come
back. Does not know queues, batches, nor how the store works.
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
        runner: the model, and the states.
        settings: bounds.
        metrics: the model's instruments.
        clock: monotonic nanoseconds.
    """

    def __init__(
        self, runner: Runner, settings: Config, metrics: ModelMetrics, clock: Callable[[], int]
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
        """Called with key and epoch when a session ends for good."""
        self._slots = Slots(capacity)
        self._runner = runner
        self._metrics = metrics
        self._clock = clock

    @property
    def has_free_slot(self) -> bool:
        """Whether another session has room in memory."""
        return self._slots.num_taken < self._slots.capacity

    @property
    def max_sessions(self) -> int:
        """How many sessions have room in memory."""
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

    def open_ephemeral(self) -> int:
        """Opens a session for one piece of work, which nobody else finds, and returns its slot.

        Raises:
            StreamcellError: SESSIONS_FULL.
        """
        slot = self._take_slot()
        self.sessions.open_ephemeral(slot)
        self._runner.clear(slot)
        return slot

    def adopt(self, key: str, epoch: int, session: Snapshot, *, is_new: bool) -> int:
        """Takes in a session that the store has, and returns its slot; `is_new`: it was not open before.

        Raises:
            StreamcellError: SESSIONS_FULL.
        """
        slot = self._enter(key, epoch)
        self.install(slot, session)
        self.sessions.durability.set_stored(
            slot,
            int(session.progress.next_step[0]),
            is_durable=session.is_durable,
            # On another model than before it is written anew, so that whoever takes it over next finds that.
            is_changed=session.model != self.model,
        )
        (self._metrics.sessions_opened if is_new else self._metrics.sessions_restored).inc()
        return slot

    def install(self, slot: int, session: Snapshot) -> None:
        """Gives a session the state and the progress that a snapshot holds."""
        self._runner.put(np.array([slot]), session.state[None])
        self.sessions.progress.put(slot, session.progress)

    def close(self, slot: int) -> int:
        """Ends a session and returns how many steps it had. Called from a control."""
        num_steps = self.sessions.progress.next_step.item(slot)
        self._report_end(slot)
        self.sessions.close(slot)
        self._release(slot)
        return num_steps

    def expire(self, slot: int) -> None:
        """Ends a session that nobody used for too long."""
        self._report_end(slot)
        self._metrics.sessions_expired.inc()
        self.sessions.end(slot, Reason.SESSION_EXPIRED)
        self._release(slot)

    def fence(self, slot: int) -> None:
        """Drops a session that another server has taken over."""
        self._metrics.sessions_fenced.inc()
        self.sessions.end(slot, Reason.SESSION_FENCED)
        self._release(slot)

    def evict(self, slot: int) -> None:
        """Removes a session from memory that the store has as it stands."""
        self._metrics.sessions_evicted.inc()
        self.sessions.close(slot)
        self._release(slot)

    def reset(self, slot: int) -> None:
        """Puts a session back to its start. Called from a control."""
        self._runner.clear(slot)
        self.sessions.progress.restart(slot)
        self.sessions.durability.mark_restarted(slot)

    # -- Between versions of the model -----------------------------------------------------------------

    def move_to(self, other: "Residents", slots: list[int]) -> list[tuple[int, int]]:
        """Moves sessions at rest, as far as there is room, to the residents of another version.

        Their slots here are not used again until `reuse`: whoever looks at one sees the session as it left.

        Returns:
            Slot and generation there of each of the first sessions in `slots`, as many as had room.
        """
        taken = [other._slots.take() for _ in slots]
        there = np.array([slot for slot in taken if slot is not None], np.int64)
        here = np.array(slots[: len(there)], np.int64)
        if not len(here):
            return []
        other._runner.put(there, self._runner.read(here))
        other.sessions.move_from(self.sessions, here, there)
        other._metrics.sessions_migrated.inc(len(here))
        for each in (self, other):
            each._metrics.sessions.set(len(each.sessions))
        return list(zip(there.tolist(), other.sessions.generation[there].tolist(), strict=True))

    def reuse(self, slots: list[int]) -> None:
        """Frees slots whose sessions have moved to another version."""
        for slot in slots:
            self._slots.give_back(slot)

    def unload(self) -> None:
        """Frees model and states. How sessions ended may still be asked, nothing else."""
        self.on_end = None
        # Streams that bound a session may refer to the rest for as long as their clients like.
        del self._runner, self.rollback

    # -- Sessions as bytes -----------------------------------------------------------------------------

    def export(self, slots: Int64s) -> tuple[list[bytes], Int64s]:
        """Returns sessions as bytes, and how many steps are in each.

        A session in the middle of a block that may yet fail is exported as it stood before the block.
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
        return Snapshot(session_id, self.model, is_durable, progress, state)

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
        durability = self.sessions.durability
        if self.on_end is not None and durability.is_tracked[slot]:
            self.on_end(self.sessions.key(slot), durability.epoch.item(slot))

    def _release(self, slot: int) -> None:
        self._slots.give_back(slot)
        self._metrics.sessions.set(len(self.sessions))
