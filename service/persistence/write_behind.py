"""Speaks with the store, in one task, so that its calls keep their order.

Claims go as they come, what somebody waits for at once, all other changes every checkpoint interval; while
the store is gone it is looked for, and what was not written waits. Does not know which sessions come or go,
nor why.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from service import errors
from service.config import Config
from service.engine.engine import Engine
from service.errors import ConfigError, Reason, StreamcellError
from service.persistence.changes import Changes, Checkpoint, Refused
from service.store.base import Claim, Claimed, ClaimStatus, Store, StoreError, WriteKind
from service.telemetry import faults, log
from service.telemetry.metrics import StoreMetrics

_MAX_WRITES = 1024  # rows in one write, between which claims get in
_MAX_CLAIMS = 512
_PROBE_SECONDS = 0.5  # how often a store that is gone is looked for
_SWEEP_ROWS = 1000
_STOP_SECONDS = 10.0
_LEAST_STOP_SECONDS = 0.5  # for the last write, however little time is left

_Answer = TypeVar("_Answer")


class WriteBehind:
    """The calls to one store.

    Args:
        engines: those there are now.
        clock, wall: monotonic nanoseconds, and Unix seconds at the start: a clock set later is not seen.
    """

    def __init__(
        self,
        store: Store,
        engines: Callable[[], Sequence[Engine]],
        settings: Config,
        metrics: StoreMetrics,
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._engines = engines
        self._interval_ns = round(settings.checkpoint_interval_seconds * 1e9)
        self._max_changed = settings.max_changed_sessions
        self._ttl_seconds = settings.session_ttl_seconds
        self._metrics = metrics
        self._clock = clock
        self._began_ns = clock()
        self._wall_offset = wall() - self._began_ns * 1e-9
        self.changes = Changes(engines, clock, self._wall)
        self._claims: list[tuple[Claim, asyncio.Future[Claimed]]] = []
        self._wake = asyncio.Event()
        self._trouble = ""
        self._incarnation = ""
        self._has_lost = False  # the store runs anew, and not everything is written again yet
        self._stored_ns = self._began_ns  # all changes before this instant are in the store
        self._task: asyncio.Task[None] | None = None
        self._is_ending = False

    async def start(self) -> None:
        """Opens the store and begins.

        Raises:
            ConfigError: the store cannot be used.
        """
        await self._store.open()
        try:
            self._incarnation = await self._asked(self._store.incarnation())
        except StoreError as error:
            raise ConfigError(f"--store: {error}") from None
        self._metrics.is_up.set(1)
        self._task = asyncio.create_task(self._run())

    async def stop(self, seconds: float = _STOP_SECONDS) -> bool:
        """Writes all sessions and leaves them to whoever claims them; tells whether there was time for it."""
        await self._end_task()
        for engine in self._engines():
            engine.sessions.is_changed[engine.sessions.all_slots()] = True
        is_written = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, _LEAST_STOP_SECONDS)):
                is_written = await self._write(everything=True, kind=WriteKind.RELEASE)
        if not is_written:
            log.warning(
                "sessions_not_stored", num_sessions=self.changes.num_changed, why=self._trouble or "no time"
            )
        await self._store.close()
        return is_written

    async def abandon(self) -> None:
        """Ends at once; what was not written is lost to whoever claims it."""
        await self._end_task()
        await self._store.close()

    async def _end_task(self) -> None:
        self._is_ending = True
        if self._task is not None:
            # It is lost where it meets a store's answer: Redis' client uses asyncio.wait_for, which does that
            # before Python 3.12.
            self._task.cancel()
            await asyncio.wait([self._task])  # to await it takes the caller's cancellation for its
            if not self._task.cancelled():
                self._task.result()  # raises what it ended with
        self._refuse_claims(errors.refusal(Reason.DRAINING))

    async def claim(self, claim: Claim) -> Claimed:
        """Returns what comes of a claim. If the caller goes away, the row is this server's, and left at that.

        Raises:
            StreamcellError: STORE_UNAVAILABLE.
        """
        if self._trouble:
            raise errors.refusal(Reason.STORE_UNAVAILABLE, problem=self._trouble)
        future: asyncio.Future[Claimed] = asyncio.get_running_loop().create_future()
        self._claims.append((claim, future))
        self.wake()
        return await future

    @property
    def trouble(self) -> str:
        """Why the store cannot be used now; empty while it can."""
        return self._trouble

    def end_of(self, key: str) -> Reason | None:
        """Returns why there is no session of a key, where that is remembered."""
        ends = (engine.sessions.end_of(key) for engine in self._engines())
        return next((end for end in ends if end is not None), None)

    def instant_of(self, used_at: float) -> int:
        """Returns the instant of the clock at which the wall clock showed `used_at`, Unix seconds."""
        return round((used_at - self._wall_offset) * 1e9)

    def wake(self) -> None:
        """Has what somebody waits for written now."""
        self._wake.set()

    async def _run(self) -> None:
        due_ns = self._clock() + self._interval_ns
        while not self._is_ending:
            await self._until(due_ns)
            await self._serve_claims()
            now = self._clock()
            is_due = now >= due_ns or self.changes.num_changed >= self._max_changed
            if is_due:
                await self._sweep()
            if await self._write(everything=is_due) and is_due:
                self._stored_ns, self._has_lost = now, False
            if is_due:
                due_ns = self._clock() + self._interval_ns
            self._measure()
            if self._trouble:
                await asyncio.sleep(_PROBE_SECONDS)
                await self._probe()

    async def _until(self, due_ns: int) -> None:
        """Returns when something is to be done: at once where somebody waits, else at an instant."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout((due_ns - self._clock()) * 1e-9):
                await self._wake.wait()
        self._wake.clear()

    async def _write(self, *, everything: bool, kind: WriteKind = WriteKind.SAVE) -> bool:
        """Writes what is waited for, or everything that changed by now too; tells whether it could."""
        if everything:
            self.changes.begin()
        while (checkpoint := self.changes.take(_MAX_WRITES, everything=everything, kind=kind)) is not None:
            if not await self._write_one(checkpoint):
                return False
            await self._serve_claims()
        return True

    async def _write_one(self, checkpoint: Checkpoint) -> bool:
        started = self._clock()
        try:
            accepted = await self._asked(self._store.write(checkpoint.writes))
        except StoreError as error:
            self._lose(error)
            self.changes.fail(checkpoint, errors.refusal(Reason.STORE_UNAVAILABLE, problem=self._trouble))
            return False
        except asyncio.CancelledError:
            self.changes.fail(checkpoint, errors.refusal(Reason.DRAINING))
            raise
        self._metrics.write_seconds.observe((self._clock() - started) * 1e-9)
        self._metrics.rows_written.inc(len(checkpoint.writes))
        refused = self.changes.settle(checkpoint, accepted)
        return not refused or await self._settle(refused)

    # -- A store that lost something ---------------------------------------------------------------

    async def _settle(self, refused: list[Refused]) -> bool:
        """Deals with sessions that may not be written; tells whether it could.

        Another server has taken them over, unless the store runs anew and may have lost their rows.
        """
        try:
            await self._notice_loss()
            claimed = await self._reclaim(refused) if self._has_lost else [None] * len(refused)
        except StoreError as error:
            self._lose(error)
            for each in refused:
                self.changes.put_back(each, errors.refusal(Reason.STORE_UNAVAILABLE, problem=self._trouble))
            return False
        for each, claim in zip(refused, claimed, strict=True):
            if claim is None:
                self.changes.lose(each)
            else:
                self.changes.regain(each, claim.epoch)
        return True

    async def _notice_loss(self) -> None:
        """Has every session written again where the store runs anew, as it may have lost some."""
        found = await self._asked(self._store.incarnation())
        if found == self._incarnation:
            return
        log.warning("store_restarted", effect="every session in memory is written again")
        self._incarnation, self._has_lost = found, True
        for engine in self._engines():
            engine.sessions.is_changed[engine.sessions.all_slots()] = True

    async def _reclaim(self, refused: list[Refused]) -> list[Claimed | None]:
        """Claims rows that the store may have lost; None for those that are newer than what this server has.

        A row that is gone is made anew. One at an older epoch than this server had is from before.
        """
        found = await self._asked(self._store.claim([_claim_of(each) for each in refused]))
        outcomes: list[Claimed | None] = []
        for each, claimed in zip(refused, found, strict=True):
            if claimed.status is ClaimStatus.OWNED_ELSEWHERE and claimed.epoch < each.epoch:
                (claimed,) = await self._asked(self._store.claim([_claim_of(each, may_take_over=True)]))
            is_newer = claimed.status is ClaimStatus.TAKEN and claimed.epoch - 1 > each.epoch
            is_ours = claimed.status in (ClaimStatus.CREATED, ClaimStatus.TAKEN) and not is_newer
            outcomes.append(claimed if is_ours else None)
        return outcomes

    async def _serve_claims(self) -> None:
        while self._claims:
            batch, self._claims = self._claims[:_MAX_CLAIMS], self._claims[_MAX_CLAIMS:]
            # A row that is to go goes before it is claimed anew.
            while (urgent := self.changes.take(_MAX_WRITES, everything=False)) is not None:
                if not await self._write_one(urgent):
                    break
            try:
                claimed = await self._asked(self._store.claim([claim for claim, _ in batch]))
            except StoreError as error:
                self._lose(error)
                self._claims = batch + self._claims
                self._refuse_claims(errors.refusal(Reason.STORE_UNAVAILABLE, problem=self._trouble))
                return
            for (_, future), outcome in zip(batch, claimed, strict=True):
                if not future.done():
                    future.set_result(outcome)

    def _refuse_claims(self, error: StreamcellError) -> None:
        for _, future in self._claims:
            if not future.done():
                future.set_exception(error)
        self._claims = []

    async def _sweep(self) -> None:
        """Looks after the store: a loss; sessions that are used and seem idle; rows of those that are.

        Nothing is removed before this server has run for as long as a session may be idle: a clock that was
        set while it was down, or a long outage, takes nobody's session before they could come back.
        """
        if self._trouble:
            return
        with contextlib.suppress(StoreError):  # the next write tells of it
            await self._notice_loss()
        if self._ttl_seconds:
            await self._expire()

    async def _expire(self) -> None:
        now, ttl_ns = self._clock(), round(self._ttl_seconds * 1e9)
        for engine in self._engines():
            slots = engine.sessions.all_slots()
            stale = slots[engine.sessions.written[slots] < now - ttl_ns // 2]
            engine.sessions.is_changed[stale] = True
        if now - self._began_ns < ttl_ns:
            return
        with contextlib.suppress(StoreError):  # the next write tells of it
            gone = await self._asked(self._store.expire(self._wall(now) - self._ttl_seconds, _SWEEP_ROWS))
            for key in gone:
                self._engines()[0].sessions.remember(key, Reason.SESSION_EXPIRED)

    @staticmethod
    async def _asked(call: Awaitable[_Answer]) -> _Answer:
        """Returns what the store answers; a fault of ours within is as if the store were gone, for a moment.

        Raises:
            StoreError: the store cannot be used.
        """
        try:
            return await call
        except StoreError:
            raise
        except Exception as exception:
            faults.report(exception)
            raise StoreError("a fault of the server's own; its log has it") from exception

    # -- Trouble -----------------------------------------------------------------------------------

    def _lose(self, error: StoreError) -> None:
        self._metrics.errors.inc()
        if not self._trouble:
            log.warning("store_lost", why=str(error), effect="serving goes on; sessions are kept in memory")
        self._set_trouble(str(error))

    async def _probe(self) -> None:
        try:
            await self._asked(self._store.check())
        except StoreError as error:
            self._set_trouble(str(error))
            return
        log.info("store_back", num_changed_sessions=self.changes.num_changed)
        self._set_trouble("")
        self._wake.set()

    def _set_trouble(self, why: str) -> None:
        self._trouble = why
        self._metrics.is_up.set(not why)
        for engine in self._engines():
            engine.sessions.store_trouble = why

    def _measure(self) -> None:
        num_changed = self.changes.num_changed
        self._metrics.changed_sessions.set(num_changed)
        self._metrics.lag_seconds.set((self._clock() - self._stored_ns) * 1e-9 if num_changed else 0.0)

    def _wall(self, now_ns: int) -> float:
        return self._wall_offset + now_ns * 1e-9


def _claim_of(refused: Refused, *, may_take_over: bool = False) -> Claim:
    return Claim(refused.key, True, True, may_take_over, refused.record)
