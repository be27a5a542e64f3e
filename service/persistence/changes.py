"""What the store does not have yet: sessions that changed or are waited for, and rows that are to go.

A *checkpoint* is what one write to the store holds: taken between two iterations, settled when the store has
answered. Does not know the store's workings, nor when it is written to.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from service import errors
from service.arrays import Flags, Int64s
from service.engine.engine import Engine
from service.errors import StreamcellError
from service.store.base import Write, WriteKind

Told = Callable[[StreamcellError | None], None]


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """Sessions of one engine in a checkpoint, as they were when it was taken."""

    engine: Engine
    slots: Int64s
    generations: Int64s
    restarts: Int64s
    next_steps: Int64s
    told: dict[int, list[Told]]  # those who wait, by slot

    def living(self) -> Flags:
        """Returns which of the sessions have not ended since."""
        lives: Flags = self.engine.sessions.generation[self.slots] == self.generations
        return lives

    def settle(self, done: Flags, now_ns: int) -> None:
        """Takes note in the sessions of which of them are stored."""
        sessions, stored = self.engine.sessions, done & self.living()
        sessions.written[self.slots[stored]] = now_ns
        stored &= sessions.restarts[self.slots] == self.restarts
        sessions.num_durable[self.slots[stored]] = self.next_steps[stored]
        if self.engine.was_superseded:
            self._settle_moved(done & ~self.living())

    def _settle_moved(self, stored: Flags) -> None:
        """Takes note of what is stored of sessions that were moved to another version meanwhile."""
        columns = self.slots, self.generations, self.restarts, self.next_steps
        rows = zip(*(column[stored].tolist() for column in columns), strict=True)
        for slot, generation, restarts, next_step in rows:
            engine, there, its = self.engine.whereabouts(slot, generation)
            sessions = engine.sessions
            if (sessions.generation[there], sessions.restarts[there]) == (its, restarts):
                sessions.num_durable[there] = next_step


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A session whose write was refused, as it stood; `told`: those who wait for it."""

    engine: Engine
    slot: int
    generation: int
    key: str
    epoch: int
    record: bytes | None
    told: list[Told]


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one write holds: rows that go first, then the sessions of the parts in order."""

    writes: list[Write]
    num_others: int
    parts: list[_Part]


class Changes:
    """What is to be written of all engines' sessions.

    Args:
        engines: those there are now.
        clock: monotonic nanoseconds, as the engines have it.
        wall: Unix seconds at an instant of `clock`.
    """

    def __init__(
        self, engines: Callable[[], Iterable[Engine]], clock: Callable[[], int], wall: Callable[[int], float]
    ) -> None:
        self._engines = engines
        self._clock = clock
        self._wall = wall
        self._others: deque[Write] = deque()
        self._due: dict[Engine, Int64s] = {}  # slots of sessions that changed before the checkpoint began
        self._waiting: dict[Engine, dict[tuple[int, int], list[Told]]] = {}  # by slot and generation

    # -- What is asked -----------------------------------------------------------------------------

    def delete(self, key: str, epoch: int) -> None:
        """Has a session's row removed."""
        self._others.append(Write(WriteKind.DELETE, key, epoch, None, 0.0))

    def release(self, key: str, epoch: int, record: bytes, used_at: float) -> None:
        """Has a row left as it was, for whoever claims it."""
        self._others.append(Write(WriteKind.RELEASE, key, epoch, record, used_at))

    def wait(self, engine: Engine, slot: int, told: Told) -> None:
        """Has a session written as it is now, soon, and a function told of it once."""
        session = slot, int(engine.sessions.generation[slot])
        self._waiting.setdefault(engine, {}).setdefault(session, []).append(told)

    @property
    def num_changed(self) -> int:
        """How many sessions have changed since they were written."""
        return sum(int(np.count_nonzero(engine.sessions.is_changed)) for engine in self._engines())

    def follow(self, engine: Engine) -> None:
        """Has those who wait for sessions that are not on an engine any more wait where they are now.

        Who waits for one that has ended is told.
        """
        waited = self._waiting.get(engine, {})
        for slot, generation in [each for each in waited if engine.sessions.generation[each[0]] != each[1]]:
            there, *session = engine.whereabouts(slot, generation)
            told = waited.pop((slot, generation))
            if there.sessions.generation[session[0]] == session[1]:
                self._waiting.setdefault(there, {}).setdefault((session[0], session[1]), []).extend(told)
            else:
                _tell(told, errors.session_ended(there.sessions.end_in(session[0])))
        if not waited:
            self._waiting.pop(engine, None)

    # -- Checkpoints -------------------------------------------------------------------------------

    def begin(self) -> None:
        """Has all that changed by now be due; what changes while it is written is due the next time.

        Else a busy server would never be done.
        """
        self._due = {engine: np.flatnonzero(engine.sessions.is_changed) for engine in self._engines()}

    def take(self, limit: int, *, everything: bool, kind: WriteKind = WriteKind.SAVE) -> Checkpoint | None:
        """Returns what to write next, up to `limit` rows; None where there is nothing.

        Args:
            everything: whether sessions that are due go too, and not those alone that are waited for.
        """
        others = [self._others.popleft() for _ in range(min(limit, len(self._others)))]
        checkpoint = Checkpoint(others, len(others), [])
        room = limit - len(others)
        for engine in list(self._engines()):
            slots = self._chosen(engine, everything, room)
            if len(slots):
                self._capture(checkpoint, engine, slots, kind)
                room -= len(slots)
        return checkpoint if checkpoint.writes else None

    def settle(self, checkpoint: Checkpoint, accepted: Sequence[bool]) -> list[Refused]:
        """Takes note of what is stored; returns the sessions whose rows are not this server's any more."""
        at, refused = checkpoint.num_others, []
        for part in checkpoint.parts:
            writes = checkpoint.writes[at : at + len(part.slots)]
            done = np.array(accepted[at : at + len(part.slots)], np.bool_)
            at += len(part.slots)
            part.settle(done, self._clock())
            sessions = zip(part.slots.tolist(), part.generations.tolist(), done.tolist(), writes, strict=True)
            for slot, generation, is_done, write in sessions:
                told = part.told.get(slot, [])
                if is_done:
                    _tell(told, None)
                else:
                    row = write.key, write.epoch, write.record
                    refused.append(Refused(part.engine, slot, generation, *row, told))
        return refused

    def regain(self, refused: Refused, epoch: int) -> None:
        """Takes note that a session's row is this server's again; it is written anew."""
        engine, slot, generation = refused.engine.whereabouts(refused.slot, refused.generation)
        if engine.sessions.generation[slot] != generation:
            _tell(refused.told, errors.session_ended(engine.sessions.end_in(slot)))
            return
        engine.sessions.epoch[slot] = epoch
        engine.sessions.is_changed[slot] = True
        for told in refused.told:
            self.wait(engine, slot, told)

    def put_back(self, refused: Refused, error: StreamcellError) -> None:
        """Has a session written another time; those who wait are told."""
        engine, slot, generation = refused.engine.whereabouts(refused.slot, refused.generation)
        if engine.sessions.generation[slot] == generation:
            engine.sessions.is_changed[slot] = True
        _tell(refused.told, error)

    def lose(self, refused: Refused) -> None:
        """Drops a session that another server has taken over."""
        engine, slot, generation = refused.engine.whereabouts(refused.slot, refused.generation)
        if engine.sessions.generation[slot] == generation:
            engine.fence(slot)
        _tell(refused.told, errors.session_ended(errors.Reason.SESSION_FENCED))

    def fail(self, checkpoint: Checkpoint, error: StreamcellError) -> None:
        """Puts back what could not be written, for another time; those who wait are told."""
        self._others.extendleft(reversed(checkpoint.writes[: checkpoint.num_others]))
        for part in checkpoint.parts:
            part.engine.sessions.is_changed[part.slots[part.living()]] = True
            for told in part.told.values():
                _tell(told, error)

    def _chosen(self, engine: Engine, everything: bool, room: int) -> Int64s:
        """Returns the slots of an engine's sessions to write, those that are waited for first."""
        self.follow(engine)
        sessions, waited = engine.sessions, self._waiting.get(engine, {})
        slots = np.array([slot for slot, _ in waited], np.int64)
        if everything:
            due = self._due.pop(engine, slots[:0])
            due = due[sessions.is_changed[due] & ~np.isin(due, slots)]
            self._due[engine] = due[max(0, room - len(slots)) :]
            slots = np.concatenate([slots, due])
        return slots[:room]

    def _told_of(self, engine: Engine, slots: Int64s) -> dict[int, list[Told]]:
        """Takes out those who wait for sessions."""
        waited = self._waiting.get(engine, {})
        sessions = zip(slots.tolist(), engine.sessions.generation[slots].tolist(), strict=True)
        told = {each[0]: waited.pop(each) for each in sessions if each in waited}
        if not waited:
            self._waiting.pop(engine, None)
        return told

    def _capture(self, checkpoint: Checkpoint, engine: Engine, slots: Int64s, kind: WriteKind) -> None:
        sessions, now = engine.sessions, self._clock()
        told = self._told_of(engine, slots)
        records, next_steps = engine.checkpoint(slots)
        part = _Part(engine, slots, sessions.generation[slots], sessions.restarts[slots], next_steps, told)
        checkpoint.parts.append(part)
        wall = self._wall(now)
        idle = (now - sessions.last_used[slots]) * 1e-9
        checkpoint.writes.extend(
            Write(kind, sessions.key(slot), epoch, record, wall - seconds)
            for slot, epoch, record, seconds in zip(
                slots.tolist(),
                sessions.epoch[slots].tolist(),
                records,
                idle.tolist(),
                strict=True,
            )
        )
        sessions.is_changed[slots] = False


def _tell(told: Iterable[Told], error: StreamcellError | None) -> None:
    for function in told:
        function(error)
