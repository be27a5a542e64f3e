"""Sessions with a store: brings them into memory, opens new ones, and makes room by evicting others.

Owns the order in which callers come for one session. Does not know protos, nor when the store is written to.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial

from service import errors
from service.engine import session_key, snapshot
from service.engine.answers import OnStored
from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.engine.snapshot import Snapshot, SnapshotError
from service.errors import Reason, StreamcellError
from service.persistence.write_behind import WriteBehind
from service.store.base import Claim, Claimed, ClaimStatus

_EVICTED_SHARE = 64  # one in so many sessions leaves memory at once, so that not every newcomer searches
_ENDED = (Reason.SESSION_FENCED, Reason.SESSION_NOT_FOUND)  # of a session that made room by ending

EngineOf = Callable[[snapshot.Model], Awaitable[Engine]]


class StoredSessions:
    """The sessions of all engines, those in the store included, as `base.Persistence` describes it.

    Args:
        write_behind: the calls to the store. engine_of: returns the engine on which a session of some model
        goes on; raises StreamcellError if none.
    """

    has_store = True

    def __init__(self, write_behind: WriteBehind, engine_of: EngineOf) -> None:
        self._write_behind = write_behind
        self._changes = write_behind.changes
        self._engine_of = engine_of
        self._under_way: dict[str, asyncio.Future[None]] = {}
        self._newcomers: Counter[Engine] = Counter()  # sessions that want room
        self._evictions: dict[Engine, asyncio.Task[None]] = {}

    def attach(self, engine: Engine) -> None:
        """Begins to store an engine's sessions."""
        engine.sessions.durability.enable()
        engine.sessions.durability.set_trouble(self._write_behind.trouble)
        engine.residents.on_end = self._delete_row
        engine.answers.when_stored = partial(self._when_stored, engine)

    def detach(self, engine: Engine) -> None:
        """Ends with an engine that has no sessions any more."""
        self._changes.follow(engine)
        self._newcomers.pop(engine, None)

    # -- Sessions come -----------------------------------------------------------------------------

    async def fetch(self, key: str, is_resident: Callable[[], bool], *, may_take_over: bool) -> None:
        """Brings a session from the store into memory, unless it is there by then."""
        async with self._alone(key):
            if is_resident():
                return
            wanted = Claim(key, may_create=False, may_find=True, may_take_over=may_take_over)
            claimed = await self._write_behind.claim(wanted)
            if claimed.status is ClaimStatus.MISSING:
                raise self._missing(key)
            if claimed.status is ClaimStatus.OWNED_ELSEWHERE:
                raise errors.refusal(
                    Reason.SESSION_FENCED, case="owned_elsewhere", session_id=session_key.id_of(key)
                )
            await self._adopt(key, claimed)

    async def create(self, key: str, engine: Engine, session: Snapshot) -> SessionRef:
        """Opens a new session, in memory and in the store, that stands where `session` does."""
        with _arriving(engine):
            async with self._alone(key):
                record = snapshot.encode_one(session)
                wanted = Claim(key, may_create=True, may_find=False, may_take_over=False, record=record)
                claimed = await self._write_behind.claim(wanted)
                if claimed.status is not ClaimStatus.CREATED:
                    raise errors.refusal(Reason.SESSION_EXISTS, session_id=session_key.id_of(key))
                try:
                    await self.make_room(engine)
                except StreamcellError:
                    self._delete_row(key, claimed.epoch)
                    raise
                slot = engine.residents.adopt(key, claimed.epoch, session, is_new=True)
                return SessionRef.at(engine, slot)

    async def discard(self, key: str) -> None:
        """Removes a session from the store that cannot be brought into memory."""
        wanted = Claim(key, may_create=False, may_find=True, may_take_over=True)
        claimed = await self._write_behind.claim(wanted)
        if claimed.status is ClaimStatus.MISSING:
            raise self._missing(key)
        self._delete_row(key, claimed.epoch)

    async def is_still_owned(self, session: SessionRef) -> bool:
        """Returns whether this server still owns a session; while the store is away, that it does."""
        try:
            await self.wait_until_stored(session)
        except StreamcellError as error:
            return error.reason is Reason.STORE_UNAVAILABLE
        return True

    async def wait_until_stored(self, session: SessionRef) -> None:
        """Returns when the store has a session as it is now."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_stored(error: StreamcellError | None) -> None:
            if not done.done():
                done.set_result(None) if error is None else done.set_exception(error)

        self._when_stored(session.engine, [session.slot], on_stored)
        await done

    @contextlib.asynccontextmanager
    async def _alone(self, key: str) -> AsyncIterator[None]:
        """Makes callers who come for one session wait for those who came before."""
        while (before := self._under_way.get(key)) is not None:
            await asyncio.wait((before,))
        self._under_way[key] = done = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            del self._under_way[key]
            done.set_result(None)

    def _missing(self, key: str) -> StreamcellError:
        has_expired = self._write_behind.end_of(key) is Reason.SESSION_EXPIRED
        return errors.refusal(
            Reason.SESSION_EXPIRED if has_expired else Reason.SESSION_NOT_FOUND,
            session_id=session_key.id_of(key),
        )

    async def _adopt(self, key: str, claimed: Claimed) -> None:
        """Makes a claimed session resident. A row that cannot be used is released as it was."""
        record = claimed.record or b""  # which no snapshot is
        try:
            session = snapshot.decode(record)
            engine = await self._engine_of(session.model)
            with _arriving(engine):
                await self.make_room(engine)
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
        # As the row says: a row that was idle for long is written again soon, before it seems to be idle
        # still.
        engine.sessions.durability.set_last_written(slot, self._write_behind.instant_of(claimed.used_at))

    # -- Room in memory ----------------------------------------------------------------------------

    async def make_room(self, engine: Engine) -> None:
        """Returns when another session has room: the sessions idle for longest leave for the store."""
        self._newcomers[engine] += 1
        try:
            while not engine.residents.has_free_slot:
                await asyncio.shield(self._eviction(engine))
        finally:
            self._newcomers[engine] -= 1

    def _eviction(self, engine: Engine) -> "asyncio.Task[None]":
        """Returns the task that makes room for all who wait: alone each would choose the same sessions."""
        if engine not in self._evictions:
            self._evictions[engine] = asyncio.create_task(self._evict_once(engine))
        return self._evictions[engine]

    async def _evict_once(self, engine: Engine) -> None:
        """Makes room once; a caller who then finds none begins anew."""
        try:
            await self._evict(engine)
        finally:
            del self._evictions[engine]

    async def _evict(self, engine: Engine) -> None:
        """Evicts at least as many sessions as are to come; where none is stored whole, stores some first."""
        share = 1 + engine.residents.max_sessions // _EVICTED_SHARE
        at_rest = engine.at_rest(max(share, self._newcomers[engine]))
        if not at_rest:
            raise errors.refusal(Reason.SESSIONS_FULL, max_resident_sessions=engine.residents.max_sessions)
        clean = [slot for slot in at_rest if engine.sessions.is_stored_whole(slot)]
        for slot in clean:
            engine.residents.evict(slot)
        if clean:
            return
        writes = [self.wait_until_stored(SessionRef.at(engine, slot)) for slot in at_rest]
        for outcome in await asyncio.gather(*writes, return_exceptions=True):
            has_ended = isinstance(outcome, StreamcellError) and outcome.reason in _ENDED
            if isinstance(outcome, BaseException) and not has_ended:
                raise outcome

    # -- Sessions go -------------------------------------------------------------------------------

    def _delete_row(self, key: str, epoch: int) -> None:
        self._changes.delete(key, epoch)
        self._write_behind.wake()

    def _when_stored(self, engine: Engine, slots: list[int], on_stored: OnStored) -> None:
        """Calls a function once, when sessions are all in the store, or with what went wrong with one."""
        left = len(slots)
        first: StreamcellError | None = None

        def one_stored(error: StreamcellError | None) -> None:
            nonlocal left, first
            left, first = left - 1, first or error
            if not left:
                on_stored(first)

        for slot in slots:
            self._changes.wait(SessionRef.at(engine, slot), one_stored)
        self._write_behind.wake()


@contextlib.contextmanager
def _arriving(engine: Engine) -> Iterator[None]:
    """Keeps an engine in memory while a session is about to enter."""
    engine.succession.arrive(1)
    try:
        yield
    finally:
        engine.succession.arrive(-1)
