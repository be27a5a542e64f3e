"""Sessions with a store: fetches them into memory, opens new ones, and says what the store has of each.

Owns the order in which callers come for one session. Does not know protos, nor when the store is written to.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial

import numpy as np

from service import errors, futures
from service.arrays import Int64s
from service.engine import session_key, snapshot
from service.engine.answers import OnAllStored
from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.engine.snapshot import Snapshot, SnapshotError
from service.errors import Reason, StreamcellError
from service.persistence.asking import Asking
from service.persistence.eviction import Eviction
from service.persistence.hand_over import HandOver
from service.persistence.write_behind import WriteBehind
from service.store.base import Claim, Claimed, ClaimStatus

EngineOf = Callable[[snapshot.Model], Awaitable[Engine]]


class StoredSessions:
    """The sessions of all engines, in memory and in the store, as `base.Persistence` describes it.

    Args:
        write_behind: the calls to the store.
        engine_of: returns the engine on which a session of a model goes on; raises StreamcellError if none.
    """

    has_store = True

    def __init__(self, write_behind: WriteBehind, engine_of: EngineOf) -> None:
        self._write_behind = write_behind
        self._changes = write_behind.changes
        self._engine_of = engine_of
        self._eviction = Eviction(self.wait_until_stored, self._changes.may_leave)
        self._asking = Asking(write_behind.claim)
        self._hand_over = HandOver(
            engines=write_behind.engines,
            changes=self._changes,
            claim=write_behind.claim,
            wake=write_behind.wake,
            alone=self._alone,
            wait_until_stored=self.wait_until_stored,
            count_fault=write_behind.count_fault,
        )
        self._leaving = self._hand_over.leaving
        write_behind.on_asked = self._hand_over
        self._confirm_after_ns = write_behind.confirm_after_ns
        self._under_way: dict[str, asyncio.Future[None]] = {}  # by key: done when the caller has finished

    def attach(self, engine: Engine) -> None:
        """Begins to store an engine's sessions."""
        engine.sessions.durability.enable()
        engine.sessions.durability.set_trouble(self._write_behind.trouble)
        engine.residents.on_end = self._delete_row
        engine.answers.when_stored = partial(self._when_stored, engine)

    def detach(self, engine: Engine) -> None:
        """Stops storing the sessions of an engine; there are none any more."""
        self._changes.follow(engine)
        self._eviction.forget(engine)

    # -- Sessions come and go --------------------------------------------------------------------------

    async def fetch(self, key: str, is_resident: Callable[[], bool], *, may_take_over: bool) -> bool:
        """Fetches a session from the store into memory; returns False if there is no such session."""
        with self._asking.taking_over(key) if may_take_over else contextlib.nullcontext():
            async with self._alone(key):
                return is_resident() or await self._fetch(key)

    async def _fetch(self, key: str) -> bool:
        claimed = await self._asking.claim(key)
        if claimed.status is ClaimStatus.MISSING:
            return False
        if claimed.status is ClaimStatus.OWNED_ELSEWHERE:
            raise errors.refusal(
                Reason.SESSION_FENCED, case="owned_elsewhere", session_id=session_key.id_of(key)
            )
        await self._adopt(key, claimed)
        return True

    async def create(self, key: str, engine: Engine, session: Snapshot) -> SessionRef:
        """Opens a new session, in memory and in the store, that stands where `session` does.

        A durable session is on the disk then, as far as the store can tell.
        """
        if session.is_durable:
            self.check_durable()
        with _arriving(engine):
            async with self._alone(key):
                record = snapshot.encode_one(session)
                wanted = Claim(key, may_create=True, may_find=False, may_take_over=False, record=record)
                claimed = await self._write_behind.claim(wanted)
                if claimed.status is not ClaimStatus.CREATED:
                    raise errors.refusal(Reason.SESSION_EXISTS, session_id=session_key.id_of(key))
                try:
                    await self._eviction.make_room(engine)
                except StreamcellError:
                    self._delete_row(key, claimed.epoch)
                    raise
                slot = engine.residents.adopt(key, claimed.epoch, session, is_new=True)
                opened = SessionRef.at(engine, slot)
        if session.is_durable and self._changes.must_sync:
            # A claim is answered from memory: the row is written again, and waited for.
            engine.sessions.durability.mark_changed(np.array([slot], np.int64))
            await self.wait_until_stored(opened)
        return opened.current

    def check_durable(self) -> None:
        """Checks that a durable session can be had."""
        if problem := self._write_behind.durable_problem:
            raise errors.refusal(Reason.DURABLE_UNSUPPORTED, problem=problem)

    async def discard(self, key: str) -> bool:
        """Removes a session from the store that cannot be fetched; returns False if there is none."""
        wanted = Claim(key, may_create=False, may_find=True, may_take_over=True)
        claimed = await self._write_behind.claim(wanted)
        if claimed.status is ClaimStatus.MISSING:
            return False
        self._delete_row(key, claimed.epoch)
        return True

    async def make_room(self, engine: Engine) -> None:
        """Returns when another session has room: the sessions idle for longest are evicted."""
        await self._eviction.make_room(engine)

    @contextlib.asynccontextmanager
    async def _alone(self, key: str) -> AsyncIterator[None]:
        """Admits the callers who come for one session one after another."""
        while (before := self._under_way.get(key)) is not None:
            await asyncio.wait((before,))
        self._under_way[key] = done = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            del self._under_way[key]
            done.set_result(None)

    async def _adopt(self, key: str, claimed: Claimed) -> None:
        """Makes a claimed session resident. A row that cannot be used is released as it was."""
        record = claimed.record or b""  # an empty record is no snapshot
        try:
            session = snapshot.decode(record)
            if session.is_durable:
                self.check_durable()
            engine = await self._engine_of(session.model)
            with _arriving(engine):
                await self._eviction.make_room(engine)
        except (SnapshotError, StreamcellError) as error:
            self._changes.release(key, claimed.epoch, record, claimed.used_at)
            self._write_behind.wake()
            if isinstance(error, SnapshotError):
                raise errors.refusal(
                    Reason.SNAPSHOT_REJECTED,
                    case="stored_record",
                    session_id=session_key.id_of(key),
                    problem=str(error),
                ) from None
            raise
        slot = engine.residents.adopt(key, claimed.epoch, session, is_new=False)
        # The row's own instant: a row that was idle for long is written again soon, before it seems idle too
        # long.
        written_ns = self._write_behind.wall_clock.instant_ns(claimed.used_at)
        engine.sessions.durability.set_last_written(slot, written_ns)

    def _delete_row(self, key: str, epoch: int) -> None:
        self._changes.delete(key, epoch)
        self._write_behind.wake()

    # -- What the store has ----------------------------------------------------------------------------

    async def wait_until_stored(self, session: SessionRef) -> None:
        """Returns when the store has a session as it is now."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes.wait(session, futures.sets(done))
        self._write_behind.wake()
        await done

    async def is_still_owned(self, session: SessionRef) -> bool:
        """Returns whether this server still owns a session; True while the store is away."""
        if session in self._leaving:
            async with self._alone(session.engine.sessions.key(session.slot)):
                return False  # it may have left by now
        try:
            await self.wait_until_stored(session)
        except StreamcellError as error:
            return error.reason is Reason.STORE_UNAVAILABLE
        return True

    def must_confirm(self, session: SessionRef) -> bool:
        """Returns whether a session is leaving, or was idle for so long that another server may have it.

        A session in use is written once a checkpoint interval, which confirms its owner. While the store is
        away nothing can be confirmed, and serving goes on from memory.
        """
        if self._leaving and session in self._leaving:
            return True
        sessions, since_ns = session.engine.sessions, session.engine.now() - self._confirm_after_ns
        if sessions.last_used.item(session.slot) >= since_ns or self._write_behind.trouble:
            return False
        return not sessions.ownership.is_confirmed_since(session.slot, since_ns)

    def slots_to_confirm(self, engine: Engine, slots: Int64s) -> Int64s:
        """Returns the slots among `slots` of sessions for which `must_confirm` is true."""
        since_ns = engine.now() - self._confirm_after_ns
        idle = slots[engine.sessions.last_used[slots] < since_ns]
        if self._write_behind.trouble:
            idle = idle[:0]
        due = engine.sessions.ownership.not_confirmed_since(idle, since_ns) if len(idle) else idle
        if self._leaving:  # seldom
            due = np.union1d(due, np.intersect1d(slots, self._hand_over.slots_leaving(engine)))
        return due

    def _when_stored(self, engine: Engine, slots: list[int], on_all_stored: OnAllStored) -> None:
        """Calls a function once, when each session is in the store or cannot be, with the errors by slot."""
        failed: dict[int, StreamcellError] = {}
        num_left = len(slots)

        def on_stored(slot: int, error: StreamcellError | None) -> None:
            nonlocal num_left
            num_left -= 1
            if error is not None:
                failed[slot] = error
            if not num_left:
                on_all_stored(failed)

        for slot in slots:
            self._changes.wait(SessionRef.at(engine, slot), partial(on_stored, slot))
        self._write_behind.wake()


@contextlib.contextmanager
def _arriving(engine: Engine) -> Iterator[None]:
    """Keeps an engine in memory while a session is about to enter."""
    engine.succession.arrive(1)
    try:
        yield
    finally:
        engine.succession.arrive(-1)
