"""What follows when the store refuses a write: the session has another owner, or the store lost its row.

The epoch tells which. A row, or a deletion that the store remembers, at a higher epoch than this server's is
a newer owner's: the session is dropped here. Any other refusal means that the store lost the row or went back
to an older copy, and the session is written anew, at an epoch above this server's. The same goes for a row
that is this server's at a higher epoch: the reply to a claim was lost. Does not know when the store is
written to.
"""

from collections.abc import Callable, Sequence

import numpy as np

from service.engine import snapshot
from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.engine.snapshot import NewerVersionError, SnapshotError
from service.persistence.availability import Availability
from service.persistence.changes import Changes, Refused
from service.store.base import Claim, Claimed, ClaimStatus, Store, StoreError, WriteStatus
from service.telemetry import log
from service.telemetry.metrics import StoreMetrics

_REPORT_SECONDS = 60.0  # at most so often the log has a loss, and all sessions are written again


class RefusedWrites:
    """Drops the sessions that another server owns, and regains those whose rows the store lost.

    Args:
        store: the store.
        availability: records the store's failures.
        engines: returns the engines that there are now.
        changes: the sessions that the store does not have yet.
        metrics: counts the rows that the store lost.
        clock: monotonic nanoseconds.
    """

    def __init__(
        self,
        store: Store,
        availability: Availability,
        engines: Callable[[], Sequence[Engine]],
        changes: Changes,
        *,
        metrics: StoreMetrics,
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._availability = availability
        self._engines = engines
        self._changes = changes
        self._metrics = metrics
        self._clock = clock
        self._incarnation = ""
        self._num_lost = 0  # rows that the log does not have yet
        self._next_report_ns = clock()

    async def start(self) -> None:
        """Notes which run of the store this is.

        Raises:
            StoreError: the store cannot be used.
        """
        self._incarnation = await self._availability.ask(self._store.incarnation())

    async def notice_restart(self) -> None:
        """Marks every session to be written again if the store restarted: it may have lost some.

        Raises:
            StoreError: the store cannot be used.
        """
        found = await self._availability.ask(self._store.incarnation())
        if found != self._incarnation:
            log.warning("store_restarted", effect="every session in memory is written again")
            self._incarnation = found
            self._mark_all_changed()

    async def resolve(self, refused: Sequence[Refused]) -> bool:
        """Drops or regains sessions whose writes were refused; returns whether the store could be asked."""
        lost = []
        for each in refused:
            if each.outcome.epoch > each.epoch and not each.outcome.is_own:
                self._changes.lose(each)
            elif each.session.current.is_live:
                lost.append(each)
            else:
                self._changes.retry(each)  # it has ended: its callers get to know
        try:
            claimed = await self._claim(lost)
        except StoreError as error:
            self._availability.record_failure(error)
            for each in lost:
                self._changes.put_back(each, self._availability.refusal())
            return False
        for each, claim in zip(lost, claimed, strict=True):
            self._conclude(each, claim)
        return True

    def report(self) -> None:
        """Logs the rows that the store lost, at most once a minute, and writes every session again."""
        now = self._clock()
        if self._num_lost and now >= self._next_report_ns:
            effect = "their sessions are written anew, and so is every other session in memory"
            log.warning("store_lost_rows", num_rows=self._num_lost, effect=effect)
            self._num_lost = 0
            self._next_report_ns = now + round(_REPORT_SECONDS * 1e9)
            self._mark_all_changed()

    async def _claim(self, lost: list[Refused]) -> list[Claimed]:
        """Claims rows that the store lost, or has an older copy of, at epochs above this server's.

        A newer owner may come between the refused write and the claim, which then leaves the row alone.
        """
        if not lost:
            return []
        claims = []
        for each in lost:
            is_gone, session = each.outcome.status is WriteStatus.GONE, each.session.current
            claims.append(
                Claim(
                    each.key,
                    may_create=is_gone,
                    may_find=not is_gone,
                    may_take_over=not is_gone,
                    record=_record_of(session) if is_gone and session.is_live else None,
                    least_epoch=each.epoch + 1,
                    most_epoch=max(each.epoch, each.outcome.epoch),
                )
            )
        return await self._availability.ask(self._store.claim(claims))

    def _conclude(self, refused: Refused, claimed: Claimed) -> None:
        """Goes on with a session whose row was claimed, or for which the claim came too late."""
        if claimed.status not in (ClaimStatus.CREATED, ClaimStatus.TAKEN):
            self._changes.retry(refused)  # the row came or went since the write, which the next write sees
        elif claimed.status is ClaimStatus.TAKEN and self._is_further(refused, claimed):
            self._changes.release(refused.key, claimed.epoch, claimed.record, claimed.used_at)
            self._changes.lose(refused)
        else:
            self._num_lost += 1
            self._metrics.rows_lost.inc()
            self._changes.regain(refused, claimed.epoch)

    def _is_further(self, refused: Refused, claimed: Claimed) -> bool:
        """Returns whether a row that was taken over holds a newer state of the session than memory.

        At an equal epoch nothing but the progress tells: two servers may have written the session anew.
        """
        if refused.outcome.epoch < refused.epoch or claimed.record is None:
            return False
        try:
            found = snapshot.decode(claimed.record)
        except NewerVersionError:  # a later release has the session, and how far it is cannot be read here
            return True
        except SnapshotError:
            return False
        return int(found.progress.next_step[0]) > refused.session.current.next_step_index

    def _mark_all_changed(self) -> None:
        for engine in self._engines():
            engine.sessions.durability.mark_changed(engine.sessions.all_slots())


def _record_of(session: SessionRef) -> bytes:
    ((record,), _) = session.engine.residents.export(np.array([session.slot], np.int64))
    return record
