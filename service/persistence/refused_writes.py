"""What follows when the store refuses a write: the session has another owner, or the store lost its row.

A refused write means that another server has taken the session over. The exception is a store that
restarted, because it may have lost rows or gone back to older ones: then this server claims them again. Does
not know when the store is written to.
"""

from collections.abc import Callable, Sequence

from service.engine.engine import Engine
from service.persistence.availability import Availability
from service.persistence.changes import Changes, Refused
from service.store.base import Claim, Claimed, ClaimStatus, Store, StoreError
from service.telemetry import log


class RefusedWrites:
    """Drops the sessions that another server owns, and regains those whose rows the store lost.

    Args:
        store: the store.
        availability: records the store's failures.
        engines: returns the engines that there are now.
        changes: the sessions that the store does not have yet.
    """

    def __init__(
        self,
        store: Store,
        availability: Availability,
        engines: Callable[[], Sequence[Engine]],
        changes: Changes,
    ) -> None:
        self._store = store
        self._availability = availability
        self._engines = engines
        self._changes = changes
        self._incarnation = ""
        self._has_lost = False  # the store restarted, and not every session is written again yet

    async def start(self) -> None:
        """Notes which run of the store this is.

        Raises:
            StoreError: the store cannot be used.
        """
        self._incarnation = await self._availability.ask(self._store.incarnation())

    async def resolve(self, refused: list[Refused]) -> bool:
        """Drops or regains sessions whose writes were refused; returns whether the store could be asked."""
        try:
            await self.notice_loss()
            claimed = await self._reclaim(refused) if self._has_lost else [None] * len(refused)
        except StoreError as error:
            self._availability.record_failure(error)
            for each in refused:
                self._changes.put_back(each, self._availability.refusal())
            return False
        for each, claim in zip(refused, claimed, strict=True):
            if claim is None:
                self._changes.lose(each)
            else:
                self._changes.regain(each, claim.epoch)
        return True

    async def notice_loss(self) -> None:
        """Marks every session to be written again if the store restarted: it may have lost some.

        Raises:
            StoreError: the store cannot be used.
        """
        found = await self._availability.ask(self._store.incarnation())
        if found == self._incarnation:
            return
        log.warning("store_restarted", effect="every session in memory is written again")
        self._incarnation, self._has_lost = found, True
        for engine in self._engines():
            engine.sessions.durability.mark_changed(engine.sessions.all_slots())

    def end_loss(self) -> None:
        """Records that the store has every session again: from now on a refused write is a new owner's."""
        self._has_lost = False

    async def _reclaim(self, refused: list[Refused]) -> list[Claimed | None]:
        """Claims rows that the store may have lost; returns None for a row that is newer than this server's.

        A row that is gone is made anew. A row at an older epoch than this server's is from before the loss.
        """
        found = await self._availability.ask(self._store.claim([_claim_of(each) for each in refused]))
        outcomes: list[Claimed | None] = []
        for each, claimed in zip(refused, found, strict=True):
            if claimed.status is ClaimStatus.OWNED_ELSEWHERE and claimed.epoch < each.epoch:
                again = _claim_of(each, may_take_over=True)
                (claimed,) = await self._availability.ask(self._store.claim([again]))
            is_newer = claimed.status is ClaimStatus.TAKEN and claimed.epoch - 1 > each.epoch
            is_ours = claimed.status in (ClaimStatus.CREATED, ClaimStatus.TAKEN) and not is_newer
            outcomes.append(claimed if is_ours else None)
        return outcomes


def _claim_of(refused: Refused, *, may_take_over: bool = False) -> Claim:
    return Claim(
        refused.key, may_create=True, may_find=True, may_take_over=may_take_over, record=refused.record
    )
