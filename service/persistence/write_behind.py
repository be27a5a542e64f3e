"""The calls to the store, made by one task so that they keep their order.

Claims go as they come, and what somebody waits for goes at once. All other changes go every checkpoint
interval. While the store is away, the task probes for it and changes wait. Does not know which sessions come
or go, nor why.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from service import errors
from service.background import BackgroundTask
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
        store: where sessions are written.
        engines: returns the engines that there are now.
        settings: intervals and bounds.
        metrics: the store's instruments.
        count_fault: called with the task's name when one of its turns raised.
        clock: monotonic nanoseconds.
        wall: Unix seconds, asked once: a clock that is set later changes nothing.
    """

    def __init__(
        self,
        store: Store,
        engines: Callable[[], Sequence[Engine]],
        settings: Config,
        metrics: StoreMetrics,
        *,
        count_fault: Callable[[str], None],
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
        self._due_ns = self._began_ns  # when everything that changed is written next
        self._task = BackgroundTask("write_behind", self._turn, count_fault)

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
        self._due_ns = self._clock() + self._interval_ns
        self._task.start()

    async def stop(self, seconds: float = _STOP_SECONDS) -> bool:
        """Writes all sessions and gives up their rows; returns whether there was time for it."""
        await self._end_task()
        for engine in self._engines():
            engine.sessions.durability.mark_changed(engine.sessions.all_slots())
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
        """Ends at once. What was not written is lost to whoever claims the row."""
        await self._end_task()
        await self._store.close()

    async def _end_task(self) -> None:
        await self._task.stop()
        self._refuse_claims(errors.refusal(Reason.DRAINING))

    async def claim(self, claim: Claim) -> Claimed:
        """Returns the outcome of a claim. If the caller goes away meanwhile, the row stays this server's.

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
        """Returns why the last session of a key ended, if that is remembered."""
        ends = (engine.sessions.endings.of(key) for engine in self._engines())
        return next((end for end in ends if end is not None), None)

    def instant_of(self, used_at: float) -> int:
        """Returns the instant of the clock at which the wall clock showed `used_at`, Unix seconds."""
        return round((used_at - self._wall_offset) * 1e9)

    def wake(self) -> None:
        """Writes now what somebody waits for."""
        self._wake.set()

    async def _turn(self) -> None:
        """Waits until something is to be done, and does it."""
        await self._until(self._due_ns)
        await self._serve_claims()
        now = self._clock()
        is_due = now >= self._due_ns or self.changes.num_changed >= self._max_changed
        if is_due:
            self._due_ns = now + self._interval_ns
            await self._sweep()
        if await self._write(everything=is_due) and is_due:
            self._stored_ns, self._has_lost = now, False
        if is_due:
            self._due_ns = self._clock() + self._interval_ns
        self._measure()
        if self._trouble:
            await asyncio.sleep(_PROBE_SECONDS)
            await self._probe()

    async def _until(self, due_ns: int) -> None:
        """Returns when something is to be done: at once when somebody waits, otherwise at an instant."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout((due_ns - self._clock()) * 1e-9):
                await self._wake.wait()
        self._wake.clear()

    async def _write(self, *, everything: bool, kind: WriteKind = WriteKind.SAVE) -> bool:
        """Writes what somebody waits for, or everything that changed by now; returns whether it could."""
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
        refused = self.changes.complete(checkpoint, accepted)
        return not refused or await self._resolve(refused)

    # -- A store that lost something ---------------------------------------------------------------

    async def _resolve(self, refused: list[Refused]) -> bool:
        """Drops or regains sessions whose writes were refused; returns whether the store could be asked.

        Another server has taken them over, unless the store restarted and may have lost their rows.
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
        """Marks every session to be written again if the store restarted: it may have lost some."""
        found = await self._asked(self._store.incarnation())
        if found == self._incarnation:
            return
        log.warning("store_restarted", effect="every session in memory is written again")
        self._incarnation, self._has_lost = found, True
        for engine in self._engines():
            engine.sessions.durability.mark_changed(engine.sessions.all_slots())

    async def _reclaim(self, refused: list[Refused]) -> list[Claimed | None]:
        """Claims rows that the store may have lost; returns None for a row that is newer than this server's.

        A row that is gone is made anew. A row at an older epoch than this server's is from before the loss.
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
        """Looks for a loss, writes sessions that seem idle in the store and are not, and expires idle rows.

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
            durability = engine.sessions.durability
            stale = durability.written_before(engine.sessions.all_slots(), now - ttl_ns // 2)
            durability.mark_changed(stale)
        if now - self._began_ns < ttl_ns:
            return
        with contextlib.suppress(StoreError):  # the next write tells of it
            gone = await self._asked(self._store.expire(self._wall(now) - self._ttl_seconds, _SWEEP_ROWS))
            for key in gone:
                self._engines()[0].sessions.endings.remember(key, Reason.SESSION_EXPIRED)

    @staticmethod
    async def _asked(call: Awaitable[_Answer]) -> _Answer:
        """Returns the store's answer; a fault of the server's own counts as a store that is away.

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
            engine.sessions.durability.set_trouble(why)

    def _measure(self) -> None:
        num_changed = self.changes.num_changed
        self._metrics.changed_sessions.set(num_changed)
        self._metrics.lag_seconds.set((self._clock() - self._stored_ns) * 1e-9 if num_changed else 0.0)

    def _wall(self, now_ns: int) -> float:
        return self._wall_offset + now_ns * 1e-9


def _claim_of(refused: Refused, *, may_take_over: bool = False) -> Claim:
    return Claim(refused.key, True, True, may_take_over, refused.record)
