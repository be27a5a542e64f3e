"""Gives sessions to other servers that ask for them: the store gets each as it is, and its row is released.

A session that is about to leave takes no new work: whoever comes for it waits, and then fetches it from its
next owner. Does not know how servers ask, nor who they are.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable

import numpy as np

from service.arrays import Int64s
from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.errors import StreamcellError
from service.persistence.between_steps import between_steps
from service.persistence.changes import Changes
from service.store.base import Claim, Claimed, ClaimStatus
from service.telemetry import faults

_LEAST_STAY_SECONDS = 0.025  # of a session: two servers whose clients want it pass it on so often at most


class HandOver:
    """The sessions that other servers ask for, on their way out.

    Args:
        engines: returns the engines that there are now.
        changes: the rows to release.
        claim: claims a row.
        wake: sends what is to be released.
        alone: admits the callers who come for a session, by its key, one after another.
        wait_until_stored: returns when the store has a session as it is now.
        count_fault: called with "hand_over" when a hand-over raised.
    """

    def __init__(
        self,
        *,
        engines: Callable[[], Iterable[Engine]],
        changes: Changes,
        claim: Callable[[Claim], Awaitable[Claimed]],
        wake: Callable[[], None],
        alone: "Callable[[str], contextlib.AbstractAsyncContextManager[None]]",
        wait_until_stored: Callable[[SessionRef], Awaitable[None]],
        count_fault: Callable[[str], None],
    ) -> None:
        self._engines = engines
        self._changes = changes
        self._claim = claim
        self._wake = wake
        self._alone = alone
        self._wait_until_stored = wait_until_stored
        self._count_fault = count_fault
        self.leaving: set[SessionRef] = set()
        """The sessions that are about to leave."""
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by key

    def give(self, key: str) -> None:
        """Begins to hand a session over, unless that is under way."""
        if key not in self._tasks:
            self._tasks[key] = task = asyncio.create_task(self._give(key), name="hand_over")
            task.add_done_callback(lambda _: self._tasks.pop(key))

    async def stop(self) -> None:
        """Ends what is under way; returns when it has ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def slots_leaving(self, engine: Engine) -> Int64s:
        """Returns the slots of an engine's sessions that are about to leave."""
        return np.array([each.slot for each in self.leaving if each.engine is engine], np.int64)

    async def _give(self, key: str) -> None:
        try:
            if (session := SessionRef.find(self._engines(), key)) is not None:
                await _stay(session)
            async with self._alone(key):
                session = SessionRef.find(self._engines(), key)
                await (self._release_row(key) if session is None else self._release(key, session))
        except StreamcellError:
            pass  # the session stays; whoever asked will ask again, or take the session over
        except Exception as exception:
            faults.report(exception)
            self._count_fault("hand_over")

    async def _release_row(self, key: str) -> None:
        """Releases the row of a session that was evicted: the store has it as it is."""
        claimed = await self._claim(Claim(key, may_create=False, may_find=True, may_take_over=False))
        if claimed.status is ClaimStatus.TAKEN:
            self._changes.release(key, claimed.epoch, None, claimed.used_at)
            self._wake()

    async def _release(self, key: str, session: SessionRef) -> None:
        """Stores a session, and releases its row with the session out of memory."""
        self.leaving.add(session)
        try:
            await between_steps(session, _nothing)
            await self._wait_until_stored(session)
            # It may have ended or moved to another version meanwhile, or a stream may have come first.
            if session.is_live and not session.is_busy and self._may_leave(session):
                epoch = session.epoch
                session.engine.residents.hand_over(session.slot)
                self._changes.release(key, epoch, None, 0.0)
                self._wake()
        finally:
            self.leaving.discard(session)

    def _may_leave(self, session: SessionRef) -> bool:
        return bool(self._changes.may_leave(session.engine, np.array([session.slot], np.int64))[0])


async def _stay(session: SessionRef) -> None:
    """Returns when a session has been here for a while."""
    engine = session.engine
    here_ns = engine.now() - engine.sessions.ownership.since_ns(session.slot)
    await asyncio.sleep(_LEAST_STAY_SECONDS - min(here_ns * 1e-9, _LEAST_STAY_SECONDS))


def _nothing(_: int) -> None:
    pass
