"""What the store does not have yet: sessions that changed or are waited for, and rows to delete or release.

A checkpoint is the content of one write to the store. It is taken between two iterations of the engines, and
completed when the store has answered. Does not know how the store works, nor when it is written to.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from service import errors
from service.arrays import Flags, Int64s
from service.engine.answers import OnStored
from service.engine.durability import Written
from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.errors import StreamcellError
from service.persistence.wall_clock import WallClock
from service.store.base import Write, WriteKind, WriteOutcome, WriteStatus


@dataclasses.dataclass(frozen=True, slots=True)
class _EngineSessions:
    """Sessions of one engine in a checkpoint, as they were when it was taken."""

    engine: Engine
    slots: Int64s
    generations: Int64s
    restarts: Int64s
    next_steps: Int64s
    are_verified: Flags  # which sessions the store has already: only their owner is verified
    are_durable: Flags
    waiting: dict[int, list[OnStored]]  # the callers who wait for each session, by slot

    def are_live(self) -> Flags:
        """Returns which of the sessions are still in their slots."""
        lives: Flags = self.engine.sessions.generation[self.slots] == self.generations
        return lives

    @property
    def are_unsynced(self) -> Flags:
        """Which of the sessions must be on the disk before their callers are answered."""
        return self.are_durable & ~self.are_verified

    def part(self, chosen: Flags) -> "_EngineSessions":
        """Returns some of the sessions."""
        slots = self.slots[chosen]
        return dataclasses.replace(
            self,
            slots=slots,
            generations=self.generations[chosen],
            restarts=self.restarts[chosen],
            next_steps=self.next_steps[chosen],
            are_verified=self.are_verified[chosen],
            are_durable=self.are_durable[chosen],
            waiting={slot: self.waiting[slot] for slot in slots.tolist() if slot in self.waiting},
        )

    def confirm(self, is_done: Flags, now_ns: int) -> None:
        """Records which of the sessions are this server's."""
        self.engine.sessions.ownership.confirm(self.slots[is_done & self.are_live()], now_ns)

    def record(self, is_done: Flags, now_ns: int) -> None:
        """Records which of the sessions the store has now."""
        are_live = self.are_live()
        is_stored = is_done & ~self.are_verified
        chosen = is_stored & are_live
        written = Written(self.slots[chosen], self.restarts[chosen], self.next_steps[chosen])
        self.engine.sessions.durability.record_write(written, now_ns)
        if self.engine.succession.has_begun:
            self._record_moved(is_stored & ~are_live)

    def _record_moved(self, is_stored: Flags) -> None:
        """Records how many steps are stored of sessions that have moved to another version since."""
        columns = self.slots, self.generations, self.restarts, self.next_steps
        rows = zip(*(column[is_stored].tolist() for column in columns), strict=True)
        for slot, generation, restarts, next_step in rows:
            session = SessionRef(self.engine, slot, generation).current
            if session.is_live:
                session.engine.sessions.durability.record_moved_write(session.slot, restarts, next_step)


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A session whose write was refused, what the store said, and the callers who wait for the session."""

    session: SessionRef
    key: str
    epoch: int
    outcome: WriteOutcome
    waiting: list[OnStored]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The content of one write: first the rows to delete or release, then the sessions of each engine."""

    writes: list[Write]
    num_departing: int
    sessions: list[_EngineSessions]

    @property
    def must_reach_disk(self) -> bool:
        """Whether a session must be on the disk before its callers are answered."""
        return any(each.are_unsynced.any() for each in self.sessions)


class Changes:
    """What is to be written, of the sessions of all engines.

    Args:
        engines: returns the engines that there are now.
        clock: the clock of the engines.
    """

    def __init__(self, engines: Callable[[], Iterable[Engine]], clock: WallClock) -> None:
        self._engines = engines
        self._clock = clock
        self._departing: deque[Write] = deque()  # rows to delete or release
        self._due: dict[Engine, Int64s] = {}  # slots of sessions that changed before `begin`
        self._waiting: dict[Engine, dict[tuple[int, int], list[OnStored]]] = {}  # by slot and generation
        self._unsynced: list[_EngineSessions] = []  # in the store, and not known to be on its disk
        self.must_sync = False
        """Whether durable sessions count as stored only once the store has them on its disk."""
        self._under_way: list[Checkpoint] = []  # taken, and neither complete nor failed

    # -- What is asked -----------------------------------------------------------------------------

    def delete(self, key: str, epoch: int) -> None:
        """Deletes a session's row with the next write."""
        self._departing.append(Write(WriteKind.DELETE, key, epoch, None, 0.0))

    def release(self, key: str, epoch: int, record: bytes | None, used_at: float) -> None:
        """Releases a row as it was, with the next write, for whoever claims it."""
        self._departing.append(Write(WriteKind.RELEASE, key, epoch, record, used_at))

    def wait(self, session: SessionRef, *callers: OnStored) -> None:
        """Calls functions once a session is written as it is now; the next write includes the session."""
        if callers:
            self._callers_of(session).extend(callers)

    def _wait_on(self, session: SessionRef, callers: list[OnStored]) -> None:
        """Puts callers back who waited for a write, before those who came since: answers keep their order."""
        if callers:
            self._callers_of(session)[:0] = callers

    def _callers_of(self, session: SessionRef) -> list[OnStored]:
        waiting = self._waiting.setdefault(session.engine, {})
        return waiting.setdefault((session.slot, session.generation), [])

    @property
    def num_changed(self) -> int:
        """How many sessions have changed since they were written."""
        return sum(engine.sessions.durability.num_changed for engine in self._engines())

    def may_leave(self, engine: Engine, slots: Int64s) -> Flags:
        """Returns which sessions [N] of an engine memory may drop, as the store has them as they are now.

        Not those with a write under way, which may yet fail; nor those that a caller waits for, who would be
        told that the session has ended.
        """
        unsettled = {slot for slot, _ in self._waiting.get(engine, {})}
        for checkpoint in self._under_way:
            for each in checkpoint.sessions:
                if each.engine is engine:
                    unsettled.update(each.slots.tolist())
        may_leave: Flags = engine.sessions.are_stored_whole(slots) & ~np.isin(slots, list(unsettled))
        return may_leave

    def follow(self, engine: Engine) -> None:
        """Moves callers who wait for sessions that left an engine to where the sessions are now.

        Callers who wait for a session that has ended get its error.
        """
        waiting = self._waiting.get(engine, {})
        gone = [place for place in waiting if not SessionRef(engine, *place).is_live]
        for place in gone:
            callers, session = waiting.pop(place), SessionRef(engine, *place).current
            if session.is_live:
                self.wait(session, *callers)
            else:
                _call(callers, _ended(session))
        if not waiting:
            self._waiting.pop(engine, None)

    # -- Checkpoints -------------------------------------------------------------------------------

    def begin(self, kind: WriteKind = WriteKind.SAVE) -> None:
        """Makes all sessions due that have changed by now; to release rows, all sessions.

        A session that changes while those are written is due the next time: a busy server would never be done
        otherwise.
        """
        for engine in self._engines():
            sessions = engine.sessions
            is_last = kind is WriteKind.RELEASE
            self._due[engine] = sessions.all_slots() if is_last else sessions.durability.changed_slots()

    def take(self, limit: int, *, everything: bool, kind: WriteKind = WriteKind.SAVE) -> Checkpoint | None:
        """Returns what to write next; None where there is nothing. A fault leaves all as it was.

        Args:
            limit: rows at most.
            everything: whether to include the sessions that are due, beside those that a caller waits for.
            kind: what happens to the rows of the sessions.
        """
        departing = [self._departing.popleft() for _ in range(min(limit, len(self._departing)))]
        checkpoint = Checkpoint(departing, len(departing), [])
        room = limit - len(departing)
        try:
            for engine in list(self._engines()):
                slots = self._chosen(engine, room, everything=everything, kind=kind)
                if len(slots):
                    self._capture(checkpoint, engine, slots, kind)
                    room -= len(slots)
        except BaseException:
            for session, callers in self._undo(checkpoint).items():
                self._wait_on(session, callers)
            raise
        if not checkpoint.writes:
            return None
        self._under_way.append(checkpoint)
        return checkpoint

    def complete(self, checkpoint: Checkpoint, outcomes: Sequence[WriteOutcome]) -> list[Refused]:
        """Records what is stored, and answers callers; returns the sessions whose writes were refused."""
        self._under_way.remove(checkpoint)
        at, refused = checkpoint.num_departing, []
        for write, outcome in zip(checkpoint.writes[:at], outcomes[:at], strict=True):
            if write.kind is WriteKind.DELETE and outcome.is_own:
                # The row was made anew while the session ended here: what is deleted is the new row.
                self.delete(write.key, outcome.epoch)
        for each in checkpoint.sessions:
            of_engine = slice(at, at + len(each.slots))
            at += len(each.slots)
            rows = list(zip(checkpoint.writes[of_engine], outcomes[of_engine], strict=True))
            is_done = np.array([outcome.status is WriteStatus.DONE for _, outcome in rows], np.bool_)
            now_ns = self._clock.now_ns()
            each.confirm(is_done, now_ns)
            is_late = is_done & each.are_unsynced & self.must_sync
            each.record(is_done & ~is_late, now_ns)
            if is_late.any():
                self._unsynced.append(each.part(is_late))
            late_slots = set(each.slots[is_late].tolist())
            places = zip(each.slots.tolist(), each.generations.tolist(), strict=True)
            for (slot, generation), (write, outcome) in zip(places, rows, strict=True):
                waiting = each.waiting.get(slot, [])
                if slot in late_slots:
                    continue
                if outcome.status is WriteStatus.DONE:
                    _call(waiting, None)
                else:
                    session = SessionRef(each.engine, slot, generation)
                    # What becomes of it is not known yet: it must not leave memory meanwhile.
                    _mark_changed(session.current)
                    refused.append(Refused(session, write.key, write.epoch, outcome, waiting))
        return refused

    @property
    def has_unsynced(self) -> bool:
        """Whether durable sessions are in the store that nobody has asked its disk for."""
        return bool(self._unsynced)

    def take_unsynced(self) -> list["_EngineSessions"]:
        """Takes out the durable sessions in the store whose disk the caller is about to ask."""
        taken, self._unsynced = self._unsynced, []
        return taken

    def complete_synced(self, synced: "list[_EngineSessions]") -> None:
        """Records that durable sessions are on the disk, and answers callers."""
        for each in synced:
            each.record(np.ones(len(each.slots), np.bool_), self._clock.now_ns())
            for callers in each.waiting.values():
                _call(callers, None)

    def fail_unsynced(self, unsynced: "list[_EngineSessions]", error: StreamcellError) -> None:
        """Marks durable sessions that may not be on the disk for another write; callers get the error."""
        for each in unsynced:
            each.engine.sessions.durability.mark_changed(each.slots[each.are_live()])
            for callers in each.waiting.values():
                _call(callers, error)

    def fail(self, checkpoint: Checkpoint, error: StreamcellError) -> None:
        """Puts back what could not be written, for another time; callers who wait get the error."""
        self._under_way.remove(checkpoint)
        for callers in self._undo(checkpoint).values():
            _call(callers, error)

    def fail_waiting(self, error: StreamcellError) -> None:
        """Gives every caller who waits the error; what changed is written another time."""
        waiting, self._waiting = self._waiting, {}
        for of_engine in waiting.values():
            for callers in of_engine.values():
                _call(callers, error)

    def _undo(self, checkpoint: Checkpoint) -> dict[SessionRef, list[OnStored]]:
        """Makes everything in a checkpoint due for another one; returns the callers who wait for sessions."""
        self._departing.extendleft(reversed(checkpoint.writes[: checkpoint.num_departing]))
        waiting = {}
        for each in checkpoint.sessions:
            # Sessions that were only verified have not changed.
            changed = each.are_live() & ~each.are_verified
            each.engine.sessions.durability.mark_changed(each.slots[changed])
            generations = dict(zip(each.slots.tolist(), each.generations.tolist(), strict=True))
            for slot, callers in each.waiting.items():
                waiting[SessionRef(each.engine, slot, generations[slot])] = callers
        return waiting

    # -- Sessions whose write was refused --------------------------------------------------------------

    def regain(self, refused: Refused, epoch: int) -> None:
        """Records that a session's row is this server's again; the session is written anew."""
        session = refused.session.current
        if session.is_live:
            session.engine.sessions.ownership.acquire(session.slot, epoch, self._clock.now_ns())
            session.engine.sessions.durability.forget_stored(session.slot)  # the row may be an older copy
        self.retry(refused)

    def retry(self, refused: Refused) -> None:
        """Marks a session for another write, for which its callers wait on."""
        session = refused.session.current
        if session.is_live:
            _mark_changed(session)
            self._wait_on(session, refused.waiting)
        else:
            _call(refused.waiting, _ended(session))

    def put_back(self, refused: Refused, error: StreamcellError) -> None:
        """Marks a session for another write; callers who wait get the error."""
        _mark_changed(refused.session.current)
        _call(refused.waiting, error)

    def lose(self, refused: Refused) -> None:
        """Drops a session that another server has taken over."""
        session = refused.session.current
        if session.is_live:
            session.engine.residents.fence(session.slot)
        _call(refused.waiting, errors.session_ended(errors.Reason.SESSION_FENCED))

    # -- What a checkpoint holds ---------------------------------------------------------------------

    def _chosen(self, engine: Engine, room: int, *, everything: bool, kind: WriteKind) -> Int64s:
        """Returns the slots of an engine's sessions to write, first those that a caller waits for."""
        self.follow(engine)
        slots = np.array([slot for slot, _ in self._waiting.get(engine, {})], np.int64)
        if everything:
            due = self._due.pop(engine, slots[:0])
            durability = engine.sessions.durability
            still = durability.is_tracked if kind is WriteKind.RELEASE else durability.is_changed
            due = due[still[due] & ~np.isin(due, slots)]
            self._due[engine] = due[max(0, room - len(slots)) :]
            slots = np.concatenate([slots, due])
        return slots[:room]

    def _take_waiting(self, engine: Engine, slots: Int64s) -> dict[int, list[OnStored]]:
        """Takes out the callers who wait for sessions, by slot."""
        waiting = self._waiting.get(engine, {})
        sessions = zip(slots.tolist(), engine.sessions.generation[slots].tolist(), strict=True)
        taken = {each[0]: waiting.pop(each) for each in sessions if each in waiting}
        if not waiting:
            self._waiting.pop(engine, None)
        return taken

    def _capture(self, checkpoint: Checkpoint, engine: Engine, slots: Int64s, kind: WriteKind) -> None:
        """Adds sessions, as they are now, to a checkpoint.

        Of sessions that the store has in their present state, it is verified, or released, without the state.
        """
        sessions, durability, now = engine.sessions, engine.sessions.durability, self._clock.now_ns()
        are_whole = sessions.are_stored_whole(slots)
        records: list[bytes | None] = [None] * len(slots)
        next_steps = sessions.progress.next_step[slots]
        if not are_whole.all():
            exported, next_steps[~are_whole] = engine.residents.export(slots[~are_whole])
            for position, record in zip(np.flatnonzero(~are_whole).tolist(), exported, strict=True):
                records[position] = record
        idle_seconds = ((now - sessions.last_used[slots]) * 1e-9).tolist()
        rows = zip(
            slots.tolist(), sessions.ownership.epoch[slots].tolist(), records, idle_seconds, strict=True
        )
        without_record = WriteKind.VERIFY if kind is WriteKind.SAVE else kind
        writes = [
            Write(
                kind if record is not None else without_record,
                sessions.key(slot),
                epoch,
                record,
                self._clock.unix_seconds(now) - seconds,
            )
            for slot, epoch, record, seconds in rows
        ]
        captured = _EngineSessions(
            engine=engine,
            slots=slots,
            generations=sessions.generation[slots],
            restarts=durability.num_restarts[slots],
            next_steps=next_steps,
            are_verified=are_whole,
            are_durable=durability.is_durable[slots],
            waiting=self._take_waiting(engine, slots),
        )
        checkpoint.sessions.append(captured)
        checkpoint.writes.extend(writes)
        durability.mark_unchanged(slots)


def _mark_changed(session: SessionRef) -> None:
    """Marks a session for another write, if it is still in memory."""
    if session.is_live:
        session.engine.sessions.durability.mark_changed(np.array([session.slot], np.int64))


def _ended(session: SessionRef) -> StreamcellError:
    return errors.session_ended(session.engine.sessions.endings.in_slot(session.slot))


def _call(waiting: Iterable[OnStored], error: StreamcellError | None) -> None:
    for on_stored in waiting:
        on_stored(error)
