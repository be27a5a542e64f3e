"""Which sessions are in memory: brings them from the store, opens new ones, makes room for them.

Owns the order in which callers come for one session. Does not know protos, nor when the store is written to.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial

from service import errors
from service.engine import snapshot
from service.engine.engine import Engine
from service.engine.residents import id_of
from service.engine.snapshot import Snapshot, SnapshotError
from service.errors import Reason, StreamcellError
from service.persistence.write_behind import WriteBehind
from service.store.base import Claim, Claimed, ClaimStatus

_SPILL_SHARE = 64  # that part of the sessions leaves memory at once, so that not every newcomer searches
_ENDED = (Reason.SESSION_FENCED, Reason.SESSION_NOT_FOUND)  # of a session that has made room by it

EngineOf = Callable[[snapshot.Model], Awaitable[Engine]]


class Keeper:
    """The sessions of all engines, those in the store included.

    Args:
        engine_of: the engine on which a session of some model goes on; raises a StreamcellError if none.
    """

    def __init__(self, write_behind: WriteBehind, engine_of: EngineOf) -> None:
        self._write_behind = write_behind
        self._changes = write_behind.changes
        self._engine_of = engine_of
        self._under_way: dict[str, asyncio.Future[None]] = {}
        self._newcomers: Counter[Engine] = Counter()  # sessions that want room
        self._spills: dict[Engine, asyncio.Task[None]] = {}

    def watch(self, engine: Engine) -> None:
        """Begins to keep an engine's sessions."""
        engine.sessions.is_stored = True
        engine.sessions.store_trouble = self._write_behind.trouble
        engine.on_end = self._ended
        engine.when_stored = partial(self._when_stored, engine)

    def unwatch(self, engine: Engine) -> None:
        """Ends to keep the sessions of an engine that has none any more."""
        self._changes.follow(engine)
        self._newcomers.pop(engine, None)

    # -- Sessions come -----------------------------------------------------------------------------

    async def fetch(self, key: str, is_resident: Callable[[], bool], *, take_over: bool) -> None:
        """Takes a session in from the store, unless it is resident by then.

        Args:
            take_over: whether from another server too.

        Raises:
            StreamcellError: SESSION_NOT_FOUND and its like; SESSION_FENCED, it is another server's;
                SNAPSHOT_REJECTED; STORE_UNAVAILABLE; SESSIONS_FULL; what `engine_of` raises.
        """
        async with self._alone(key):
            if is_resident():
                return
            wanted = Claim(key, may_create=False, may_find=True, may_take_over=take_over)
            claimed = await self._write_behind.claim(wanted)
            if claimed.status is ClaimStatus.MISSING:
                raise self._missing(key)
            if claimed.status is ClaimStatus.OWNED_ELSEWHERE:
                raise errors.refusal(Reason.SESSION_FENCED, case="owned_elsewhere", session_id=id_of(key))
            await self._take_in(key, claimed)

    async def create(self, key: str, engine: Engine, session: Snapshot) -> int:
        """Opens a new session, in the store and in memory, where `session` stands; returns its slot.

        Raises:
            StreamcellError: SESSION_EXISTS; STORE_UNAVAILABLE; SESSIONS_FULL.
        """
        with _coming(engine):
            return await self._create(key, engine, session)

    async def _create(self, key: str, engine: Engine, session: Snapshot) -> int:
        async with self._alone(key):
            record = snapshot.encode_one(session)
            claimed = await self._write_behind.claim(
                Claim(key, may_create=True, may_find=False, may_take_over=False, record=record)
            )
            if claimed.status is not ClaimStatus.CREATED:
                raise errors.refusal(Reason.SESSION_EXISTS, session_id=id_of(key))
            try:
                await self.make_room(engine)
            except StreamcellError:
                self._ended(key, claimed.epoch)
                raise
            return engine.adopt(key, claimed.epoch, session, is_new=True)

    async def forget(self, key: str) -> None:
        """Removes a session that cannot be taken in.

        Raises:
            StreamcellError: SESSION_NOT_FOUND and its like; STORE_UNAVAILABLE.
        """
        claimed = await self._write_behind.claim(
            Claim(key, may_create=False, may_find=True, may_take_over=True)
        )
        if claimed.status is ClaimStatus.MISSING:
            raise self._missing(key)
        self._ended(key, claimed.epoch)

    async def confirm(self, engine: Engine, slot: int) -> bool:
        """Tells whether a session is this server's still; while the store is gone, that it is."""
        try:
            await self.stored(engine, slot)
        except StreamcellError as error:
            return error.reason is Reason.STORE_UNAVAILABLE
        return True

    async def stored(self, engine: Engine, slot: int) -> None:
        """Returns when a session is in the store as it is now.

        Raises:
            StreamcellError: STORE_UNAVAILABLE; or it has ended meanwhile.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def told(error: StreamcellError | None) -> None:
            if not done.done():
                done.set_result(None) if error is None else done.set_exception(error)

        self._when_stored(engine, [slot], told)
        await done

    @contextlib.asynccontextmanager
    async def _alone(self, key: str) -> AsyncIterator[None]:
        """Has whoever comes for a session wait for those who came before."""
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
            Reason.SESSION_EXPIRED if has_expired else Reason.SESSION_NOT_FOUND, session_id=id_of(key)
        )

    async def _take_in(self, key: str, claimed: Claimed) -> None:
        """Makes a claimed session resident; what cannot be used is left as it was."""
        record = claimed.record or b""  # which no snapshot is
        try:
            session = snapshot.decode(record)
            engine = await self._engine_of(session.model)
            with _coming(engine):
                await self.make_room(engine)
        except (SnapshotError, StreamcellError) as error:
            self._changes.release(key, claimed.epoch, record, claimed.used_at)
            self._write_behind.wake()
            if isinstance(error, SnapshotError):
                raise errors.refusal(
                    Reason.SNAPSHOT_REJECTED, case="stored_record", session_id=id_of(key), problem=str(error)
                ) from None
            raise
        slot = engine.adopt(key, claimed.epoch, session, is_new=False)
        # As the row has it: one that was idle for long is then written soon, before it seems to be still.
        engine.sessions.written[slot] = self._write_behind.instant_of(claimed.used_at)

    # -- Room in memory ----------------------------------------------------------------------------

    async def make_room(self, engine: Engine) -> None:
        """Returns when another session has room: those not used for longest leave for the store.

        Raises:
            StreamcellError: SESSIONS_FULL, every session has work; STORE_UNAVAILABLE, none can be written.
        """
        self._newcomers[engine] += 1
        try:
            while not engine.has_free_slot:
                await asyncio.shield(self._spilling(engine))
        finally:
            self._newcomers[engine] -= 1

    def _spilling(self, engine: Engine) -> "asyncio.Task[None]":
        """Returns what makes room, for all who want it: on their own each would choose the same sessions."""
        if engine not in self._spills:
            self._spills[engine] = asyncio.create_task(self._spill(engine))
        return self._spills[engine]

    async def _spill(self, engine: Engine) -> None:
        """Makes room once; whoever comes then and finds none begins anew."""
        try:
            await self._let_go(engine)
        finally:
            del self._spills[engine]

    async def _let_go(self, engine: Engine) -> None:
        """Has sessions leave memory, as many as are to come at least; or has them written, to leave next."""
        share = 1 + engine.max_sessions // _SPILL_SHARE
        at_rest = engine.at_rest(max(share, self._newcomers[engine]))
        if not at_rest:
            raise errors.refusal(Reason.SESSIONS_FULL, max_resident_sessions=engine.max_sessions)
        clean = [slot for slot in at_rest if engine.sessions.is_stored_whole(slot)]
        for slot in clean:
            engine.spill(slot)
        if not clean:
            outcomes = await asyncio.gather(
                *(self.stored(engine, slot) for slot in at_rest), return_exceptions=True
            )
            for outcome in outcomes:
                has_ended = isinstance(outcome, StreamcellError) and outcome.reason in _ENDED
                if isinstance(outcome, BaseException) and not has_ended:
                    raise outcome

    # -- Sessions go -------------------------------------------------------------------------------

    def _ended(self, key: str, epoch: int) -> None:
        self._changes.delete(key, epoch)
        self._write_behind.wake()

    def _when_stored(
        self, engine: Engine, slots: list[int], told: Callable[[StreamcellError | None], None]
    ) -> None:
        """Calls a function once, when sessions are all in the store, or with what went wrong with one."""
        left = len(slots)
        first: StreamcellError | None = None

        def one_told(error: StreamcellError | None) -> None:
            nonlocal left, first
            left, first = left - 1, first or error
            if not left:
                told(first)

        for slot in slots:
            self._changes.wait(engine, slot, one_told)
        self._write_behind.wake()


@contextlib.contextmanager
def _coming(engine: Engine) -> Iterator[None]:
    """Has an engine stay while a session is about to enter."""
    engine.num_coming += 1
    try:
        yield
    finally:
        engine.num_coming -= 1
