"""One model's sessions in memory: their slots, their columns and their states, from opening to leaving.

A session leaves when it is closed, when it ends by itself, or for the store, from where it comes back.
Does not know queues, batches, nor how the store works.
"""

from collections.abc import Callable
from typing import Self

import numpy as np

from service import errors
from service.arrays import Float32s, Int64s
from service.config import Config
from service.engine import snapshot
from service.engine.rollback import Undo
from service.engine.session_table import Sessions, Standing
from service.engine.slots import Slots
from service.engine.snapshot import Snapshot
from service.errors import Reason
from service.runtime.manifest import Manifest
from service.runtime.runner import Runner
from service.telemetry.metrics import ModelMetrics


class Residents:
    """Sessions of one model.

    Args:
        runner: the model, and the states.
        settings: bounds.
        metrics: the model's instruments.
        clock: monotonic nanoseconds.
    """

    def __init__(
        self, runner: Runner, settings: Config, metrics: ModelMetrics, clock: Callable[[], int]
    ) -> None:
        about = runner.artifact.manifest
        capacity = settings.max_resident_sessions
        self.name = runner.artifact.name
        self.version = runner.artifact.version
        self.manifest: Manifest = about
        self.model = snapshot.Model(
            self.name,
            self.version,
            runner.artifact.digest,
            snapshot.layout_of(about),
            about.state_size,
            len(about.outputs),
        )
        self.sessions = Sessions(capacity, len(about.inputs), len(about.outputs), settings.replies_kept)
        self.on_end: Callable[[str, int], None] | None = None
        """Told the key and the epoch of a session that ends for good."""
        self.is_retiring = False
        """Whether a newer version took over: it leaves with its last session."""
        self.successor: Self | None = None
        """The version that its sessions move to, if they do."""
        self.was_superseded = False
        """Whether sessions have moved to another version, ever: who kept a slot looks again."""
        self.num_coming = 0
        """Sessions about to enter, for which it is not to leave."""
        self.has_left = False
        """Whether it is out of memory: nothing may be asked of it."""
        self._moved: dict[tuple[int, int], tuple[Self, int, int]] = {}
        self._vacated: list[int] = []
        self._slots = Slots(capacity)
        self._runner = runner
        self._undo = Undo(self.sessions, runner)
        self._metrics = metrics
        self._clock = clock

    def open(self, key: str, epoch: int = 1) -> int:
        """Opens a session and returns its slot.

        Raises:
            StreamcellError: SESSIONS_FULL.
        """
        slot = self._enter(key, epoch)
        self._runner.clear(slot)
        self._metrics.sessions_opened.inc()
        return slot

    def lend(self) -> int:
        """Opens a session for one piece of work, that nobody else finds, and returns its slot.

        Raises:
            StreamcellError: SESSIONS_FULL.
        """
        slot = self._take_slot()
        self.sessions.lend(slot)
        self._runner.clear(slot)
        return slot

    def close(self, slot: int) -> int:
        """Ends a session and returns how many steps it had; to be called from a control."""
        num_steps = int(self.sessions.next_step[slot])
        self._tell_end(slot)
        self.sessions.close(slot)
        self._release(slot)
        return num_steps

    def expire(self, slot: int) -> None:
        """Ends a session that nobody used for too long."""
        self._tell_end(slot)
        self._metrics.sessions_expired.inc()
        self._end(slot, Reason.SESSION_EXPIRED)

    def fence(self, slot: int) -> None:
        """Drops a session that another server has taken over."""
        self._metrics.sessions_fenced.inc()
        self._end(slot, Reason.SESSION_FENCED)

    def reset(self, slot: int) -> None:
        """Puts a session back to its start; to be called from a control."""
        self._runner.clear(slot)
        self.sessions.restart(slot)
        self.sessions.forget_stored(slot)

    def forecast(self, slot: int, horizon: int, future: Float32s) -> Float32s:
        """Returns a session's forecast [H, O] for `future` [H, K]; to be called from a control.

        Raises:
            StreamcellError: INVALID_ARGUMENT, the session has no step yet.
        """
        if not self.sessions.next_step[slot]:
            raise errors.invalid_argument(
                "session_id", "the session has no step yet: a forecast needs one at least"
            )
        y = self._runner.forecast(slot, int(self.sessions.last_time[slot]), horizon, future)
        self._metrics.forecasts.inc()
        return y

    # -- To another version ------------------------------------------------------------------------

    def supersede(self, successor: Self | None) -> None:
        """Has another version take over; with a `successor`, sessions move there."""
        self.is_retiring = True
        self.successor = successor
        self.was_superseded |= successor is not None

    def resume(self) -> None:
        """Has this version go on itself, after another had taken over."""
        self.is_retiring, self.successor = False, None
        for slot in self._vacated:
            self._slots.give_back(slot)
        self._vacated = []

    def let_go(self) -> None:
        """Frees model and states: where sessions are and how they ended may still be asked, nothing else."""
        self.has_left = True
        self.on_end = None
        # Streams on which sessions were bound may hold on to the rest for as long as their clients like.
        del self._runner, self._undo

    def move(self, slots: list[int]) -> int:
        """Has sessions at rest go on, where they stand, on the successor; returns how many had room there.

        Their slots are not used again meanwhile: who still looks at one sees the session as it left.
        """
        to = self.successor
        if to is None:
            return 0
        taken = [to._slots.take() for _ in slots]
        there = np.array([slot for slot in taken if slot is not None], np.int64)
        here = np.array(slots[: len(there)], np.int64)
        if not len(here):
            return 0
        generations = self.sessions.generation[here].tolist()
        to._runner.put(there, self._runner.read(here))
        to.sessions.take_over(self.sessions, here, there)
        before = zip(here.tolist(), generations, strict=True)
        after = zip(there.tolist(), to.sessions.generation[there].tolist(), strict=True)
        self._moved.update({was: (to, *now) for was, now in zip(before, after, strict=True)})
        self._vacated += here.tolist()
        to._metrics.sessions_migrated.inc(len(here))
        for each in (self, to):
            each._metrics.sessions.set(len(each.sessions))
        return len(here)

    def whereabouts(self, slot: int, generation: int) -> tuple[Self, int, int]:
        """Returns where a session is that was here: on which version, in which slot, of which generation."""
        if not self.was_superseded:  # as nearly always
            return self, slot, generation
        at = self, slot, generation
        while (there := at[0]._moved.get(at[1:])) is not None:
            at = there
        return at

    # -- Bytes, and the store ----------------------------------------------------------------------

    def export(self, slots: Int64s) -> list[bytes]:
        """Returns sessions as bytes."""
        return self.checkpoint(slots)[0]

    def checkpoint(self, slots: Int64s) -> tuple[list[bytes], Int64s]:
        """Returns sessions as bytes, and how many steps are in each.

        One in the middle of what may still be undone goes as it stood before that.
        """
        sessions = self.sessions
        standing, states = sessions.read(slots), self._runner.read(slots)
        self._undo.put_before(slots, standing, states)
        records = snapshot.encode(
            self.model,
            [id_of(sessions.key(slot)) for slot in slots.tolist()],
            standing,
            states,
            sessions.is_durable[slots],
        )
        return records, standing.next_step

    def blank(self, session_id: str, *, is_durable: bool) -> Snapshot:
        """Returns a session that has had no step."""
        nothing = np.zeros(1, np.int64)
        kept_y = np.zeros((1, self.sessions.replies_kept, self.model.num_outputs), np.float32)
        prints = np.zeros((1, self.sessions.replies_kept), np.uint64)
        standing = Standing(nothing, nothing, nothing, kept_y, prints)
        state = np.zeros(self.model.state_size, np.float32)
        return Snapshot(session_id, self.model, is_durable, standing, state)

    def adopt(self, key: str, epoch: int, session: Snapshot, *, is_new: bool) -> int:
        """Takes in a session that the store has so, and returns its slot; `is_new`: it was not open before.

        Raises:
            StreamcellError: SESSIONS_FULL.
        """
        slot = self._enter(key, epoch)
        self.install(slot, session)
        self.sessions.is_durable[slot] = session.is_durable
        self.sessions.num_durable[slot] = self.sessions.next_step[slot]
        # On another model than before it is written anew, so that whoever takes it over next finds that.
        self.sessions.is_changed[slot] = session.model != self.model
        (self._metrics.sessions_opened if is_new else self._metrics.sessions_restored).inc()
        return slot

    def install(self, slot: int, session: Snapshot) -> None:
        """Has a session stand where another stood when it became bytes."""
        self._runner.put(np.array([slot]), session.state[None])
        self.sessions.put(slot, session.standing)

    def spill(self, slot: int) -> None:
        """Lets a session go that the store has whole."""
        self._metrics.sessions_evicted.inc()
        self.sessions.close(slot)
        self._release(slot)

    @property
    def has_free_slot(self) -> bool:
        """Whether another session has room in memory."""
        return self._slots.num_taken < self._slots.capacity

    @property
    def max_sessions(self) -> int:
        """How many sessions have room in memory."""
        return self._slots.capacity

    def _enter(self, key: str, epoch: int) -> int:
        slot = self._take_slot()
        self.sessions.open(key, slot, self._clock())
        if self.sessions.is_stored:
            self.sessions.epoch[slot] = epoch
        self._metrics.sessions.set(len(self.sessions))
        return slot

    def _take_slot(self) -> int:
        slot = self._slots.take()
        if slot is None:
            raise errors.refusal(Reason.SESSIONS_FULL, max_resident_sessions=self._slots.capacity)
        return slot

    def _end(self, slot: int, reason: Reason) -> None:
        self.sessions.end(slot, reason)
        self._release(slot)

    def _tell_end(self, slot: int) -> None:
        if self.on_end is not None and self.sessions.is_kept[slot]:
            self.on_end(self.sessions.key(slot), int(self.sessions.epoch[slot]))

    def _release(self, slot: int) -> None:
        self._slots.give_back(slot)
        self._metrics.sessions.set(len(self.sessions))


def id_of(key: str) -> str:
    """Returns the id that a session's principal knows it by."""
    return key.split("\0", 1)[1]
