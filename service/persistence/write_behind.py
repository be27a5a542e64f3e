"""Writes changed sessions to the store from one background task, so that all calls keep their order.

Claims go as they come, and so does what a caller waits for. All other changes go every checkpoint interval.
While the store is away, the task probes for its return and changes wait. A second task waits for the store's
disk, where durable sessions need it. Does not know which sessions come or go, nor why.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from service import errors
from service.background import BackgroundTask
from service.config import Config
from service.engine.engine import Engine
from service.errors import Reason
from service.persistence import opening, pending_claims
from service.persistence.availability import FAULT, Availability
from service.persistence.changes import Changes, Checkpoint
from service.persistence.expiry import Expiry
from service.persistence.pending_claims import Pending, PendingClaims
from service.persistence.refused_writes import RefusedWrites
from service.persistence.wall_clock import WallClock
from service.store.base import Claim, Claimed, Store, StoreError, Write, WriteKind, WriteOutcome
from service.telemetry import faults, log
from service.telemetry.metrics import StoreMetrics

_MAX_WRITES = 1024  # rows in one write, between which claims get in
_PROBE_SECONDS = 0.5  # how often a store that is away is asked whether it is back
_LEAST_CONFIRM_NS = 250_000_000  # a session must not seem idle for the time that a confirmation takes
_STOP_SECONDS = 10.0
_LEAST_STOP_SECONDS = 0.5  # for the last write, however little time is left


class OnAsked(Protocol):
    """What happens when other servers ask for sessions."""

    def give(self, key: str) -> None:
        """Begins to hand a session over."""

    async def stop(self) -> None:
        """Ends what is under way."""


class WriteBehind:
    """The calls to one store.

    Args:
        store: where sessions are written.
        engines: returns the engines that there are now.
        settings: intervals and bounds.
        metrics: the store's instruments.
        count_fault: called with the task's name when one of its turns raised.
        clock: monotonic nanoseconds.
        wall: Unix seconds, read once: a clock that is set later changes nothing.
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
        self.wall_clock = WallClock(clock, wall)
        self.changes = Changes(engines, self.wall_clock)
        self.engines = engines
        self.count_fault = count_fault
        self.on_asked: OnAsked | None = None
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._interval_ns = round(settings.checkpoint_interval_seconds * 1e9)
        self.confirm_after_ns = max(self._interval_ns, _LEAST_CONFIRM_NS)
        """How long a session may be idle until its owner is confirmed before its next use."""
        self._max_wait_seconds = settings.store_wait_seconds
        self._max_changed = settings.max_changed_sessions
        self._availability = Availability(store, engines, metrics)
        self._refused_writes = RefusedWrites(
            store, self._availability, engines, self.changes, metrics=metrics, clock=clock
        )
        self._expiry = Expiry(
            store,
            self._availability,
            engines,
            ttl_seconds=settings.session_ttl_seconds,
            clock=self.wall_clock,
        )
        self._claims = PendingClaims()
        self._wake = asyncio.Event()
        self._stored_ns = self.wall_clock.began_ns  # all changes before this instant are in the store
        self._due_ns = self.wall_clock.began_ns  # when everything that changed is written next
        self._task = BackgroundTask("write_behind", self._turn, count_fault)
        self._listening = BackgroundTask("listen_for_servers", self._listen, count_fault)
        self._refuses_durable = settings.durable_without_disk == "refuse"
        self._must_sync = asyncio.Event()
        self._sync_trouble = ""
        self._sync_task = BackgroundTask("sync_durable", self._sync_turn, count_fault)

    # -- Start and stop --------------------------------------------------------------------------------

    async def start(self, on_wait: Callable[[], Awaitable[None]] | None = None) -> None:
        """Opens the store and starts the task; waits for a store that is away, and refuses claims meanwhile.

        Args:
            on_wait: awaited once if the store is away, before the wait.

        Raises:
            ConfigError: the store is wrong for good, or was away for longer than `store_wait_seconds`.
        """
        await opening.until_open(
            self._open,
            self._availability,
            max_wait_seconds=self._max_wait_seconds,
            on_wait=on_wait,
            clock=self._clock,
        )
        if self._store.disk_problem:
            answered = "their steps are answered once the store has them in its memory"
            effect = "durable sessions are refused" if self._refuses_durable else answered
            log.warning("durable_without_disk", why=self._store.disk_problem, effect=effect)
        self.changes.must_sync = self._store.must_sync
        self._due_ns = self._clock() + self._interval_ns
        self._task.start()
        self._listening.start()
        self._sync_task.start()

    async def _open(self) -> None:
        await self._store.open()
        await self._refused_writes.start()

    async def stop(self, seconds: float = _STOP_SECONDS) -> bool:
        """Writes all sessions and gives up their rows; returns whether there was time for it."""
        await self._end_tasks()
        is_written, why = False, "no time"
        try:
            async with asyncio.timeout(max(seconds, _LEAST_STOP_SECONDS)):
                is_written = await self._write(everything=True, kind=WriteKind.RELEASE)
                is_written = is_written and await self._sync()
                why = self._availability.trouble or self._sync_trouble
        except TimeoutError:
            pass
        except Exception as exception:
            faults.report(exception)
            why = FAULT
        if not is_written:
            log.warning("sessions_not_stored", num_sessions=self.changes.num_changed, why=why)
        await self._store.close()
        return is_written

    async def abandon(self) -> None:
        """Ends at once. What was not written is lost to whoever claims the row."""
        await self._end_tasks()
        await self._store.close()

    async def _end_tasks(self) -> None:
        await self._listening.stop()
        if self.on_asked is not None:
            await self.on_asked.stop()
        await self._task.stop()
        await self._sync_task.stop()
        self._claims.refuse_all(errors.refusal(Reason.DRAINING))

    # -- What is asked ---------------------------------------------------------------------------------

    @property
    def trouble(self) -> str:
        """Why the store cannot be used now; empty while it can."""
        return self._availability.trouble

    @property
    def durable_problem(self) -> str:
        """Why durable sessions are refused; empty if they are not."""
        is_known = self._refuses_durable and not self.trouble
        return self._store.disk_problem if is_known else ""

    async def claim(self, claim: Claim) -> Claimed:
        """Returns the outcome of a claim. If the caller goes away meanwhile, the row stays this server's.

        Raises:
            StreamcellError: STORE_UNAVAILABLE.
        """
        if self._availability.trouble:
            raise self._availability.refusal()
        future = self._claims.add(claim)
        self.wake()
        return await future

    def wake(self) -> None:
        """Starts the next turn now: a caller waits."""
        self._wake.set()

    # -- The task --------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        """Waits until a caller waits or the checkpoint is due, then claims and writes."""
        await self._wait_until(self._due_ns)
        try:
            await self._claim_and_write()
        except Exception:
            self.changes.fail_waiting(self._availability.fault_refusal())
            self._due_ns = self._clock()  # the next turn writes what this one did not
            raise
        if self._availability.trouble:
            await asyncio.sleep(_PROBE_SECONDS)
            await self._probe()

    async def _claim_and_write(self) -> None:
        await self._send_claims()
        now = self._clock()
        is_due = now >= self._due_ns or self.changes.num_changed >= self._max_changed
        if is_due:
            self._due_ns = now + self._interval_ns
            await self._sweep()
        if await self._write(everything=is_due) and is_due:
            self._stored_ns = now
        if is_due:
            self._due_ns = self._clock() + self._interval_ns
        self._measure()

    async def _wait_until(self, due_ns: int) -> None:
        """Returns when a caller waits, otherwise at an instant."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout((due_ns - self._clock()) * 1e-9):
                await self._wake.wait()
        self._wake.clear()

    async def _send_claims(self) -> None:
        """Claims all rows that callers wait for."""
        while self._claims:
            batch = self._claims.take()
            try:
                if not await self._write_urgent():
                    self._refuse_claims(batch)
                    return
                outcomes = await self._availability.ask(self._store.claim([claim for claim, _ in batch]))
            except StoreError as error:
                self._availability.record_failure(error)
                self._refuse_claims(batch)
                return
            except BaseException:
                self._claims.put_back(batch)
                raise
            pending_claims.resolve(batch, outcomes)

    def _refuse_claims(self, batch: list[Pending]) -> None:
        """Answers the callers of a batch, and all who came since, that the store is away."""
        self._claims.put_back(batch)
        self._claims.refuse_all(self._availability.refusal())

    async def _write_urgent(self) -> bool:
        """Writes what callers wait for, before any claim; returns whether the store could be asked.

        A claim that overtook a row's deletion would raise the epoch, and bring back what a client has closed.
        """
        while (urgent := self.changes.take(_MAX_WRITES, everything=False)) is not None:
            if not await self._write_one(urgent):
                return False
        return True

    async def _sweep(self) -> None:
        """Looks for a loss of rows, and expires idle rows; not while the store is away."""
        if self._availability.trouble:
            return
        with contextlib.suppress(StoreError):  # the next write records the failure
            await self._refused_writes.notice_restart()
        self._refused_writes.report()
        await self._expiry.sweep()

    async def _write(self, *, everything: bool, kind: WriteKind = WriteKind.SAVE) -> bool:
        """Writes what callers wait for, or everything that changed by now; returns whether it could."""
        if everything:
            self.changes.begin(kind)
        while True:
            while (each := self.changes.take(_MAX_WRITES, everything=everything, kind=kind)) is not None:
                if not await self._write_one(each):
                    return False
                self._measure()
                await self._send_claims()
            if kind is not WriteKind.RELEASE or not self.changes.num_changed:
                return True
            self.changes.begin()  # rows that the store had lost, and that are this server's again

    async def _write_one(self, checkpoint: Checkpoint) -> bool:
        started = self._clock()
        to_disk = self.changes.must_sync and checkpoint.must_reach_disk
        write = self._write_to_disk if to_disk else self._store.write
        try:
            outcomes = await self._availability.ask(write(checkpoint.writes))
        except StoreError as error:
            self._availability.record_failure(error)
            self.changes.fail(checkpoint, self._availability.refusal())
            return False
        except asyncio.CancelledError:
            self.changes.fail(checkpoint, errors.refusal(Reason.DRAINING))
            raise
        self._metrics.write_seconds.observe((self._clock() - started) * 1e-9)
        self._metrics.rows_written.inc(len(checkpoint.writes))
        refused = self.changes.complete(checkpoint, outcomes)
        if self.changes.has_unsynced:
            self._must_sync.set()
        return not refused or await self._refused_writes.resolve(refused)

    # -- Durable sessions on the disk ------------------------------------------------------------------

    async def _sync_turn(self) -> None:
        """Waits until durable sessions were written, then until they are on the disk.

        A task of its own: the disk of a store may take a second, for which claims must not wait. What is
        written meanwhile is asked for the next time, all of it together.
        """
        while not self._must_sync.is_set():  # a write that began after the event was set has cleared it
            await self._must_sync.wait()
        self._must_sync.clear()
        await self._sync()

    async def _write_to_disk(self, writes: Sequence[Write]) -> list[WriteOutcome]:
        """Writes rows that the disk is asked for later; not while it is asked for what was written before."""
        self._must_sync.clear()
        try:
            return await self._store.write(writes, to_disk=True)
        except BaseException as error:
            # The store no longer knows the writes before this one either.
            problem = str(error) if isinstance(error, StoreError) else FAULT
            refusal = errors.refusal(Reason.STORE_UNAVAILABLE, problem=problem)
            self.changes.fail_unsynced(self.changes.take_unsynced(), refusal)
            raise

    async def _sync(self) -> bool:
        """Waits until the durable sessions that were written are on the disk; returns whether they are."""
        unsynced = self.changes.take_unsynced()
        if not unsynced:
            return True
        try:
            await self._availability.ask(self._store.sync())
        except StoreError as error:
            self._metrics.errors.inc()
            if not self._sync_trouble:
                log.warning(
                    "not_on_disk", why=str(error), effect="durable steps are refused, and written again"
                )
            self._sync_trouble = str(error)
            self.changes.fail_unsynced(unsynced, errors.refusal(Reason.STORE_UNAVAILABLE, problem=str(error)))
            return False
        except asyncio.CancelledError:
            self.changes.fail_unsynced(unsynced, errors.refusal(Reason.DRAINING))
            raise
        self._sync_trouble = ""
        self.changes.complete_synced(unsynced)
        return True

    async def _probe(self) -> None:
        """Asks a store that is away whether it is back; if so, the next turn starts now."""
        if await self._availability.probe(self.changes.num_changed):
            self.wake()

    async def _listen(self) -> None:
        """Hears which rows other servers ask for; while the store is away, nothing."""
        try:
            keys = await self._store.asked_for()
        except StoreError:
            await asyncio.sleep(_PROBE_SECONDS)
            return
        if self.on_asked is not None:
            for key in keys:
                self.on_asked.give(key)

    def _measure(self) -> None:
        num_changed = self.changes.num_changed
        self._metrics.changed_sessions.set(num_changed)
        self._metrics.lag_seconds.set((self._clock() - self._stored_ns) * 1e-9 if num_changed else 0.0)
