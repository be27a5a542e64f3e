"""Room in memory: evicts the sessions that are idle for longest, stored ones first.

Does not know the store, nor which session gets the room.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import numpy as np

from service import errors
from service.arrays import Flags, Int64s
from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.errors import Reason, StreamcellError

_EVICTED_SHARE = 64  # one in so many sessions leaves memory at once, so that not every newcomer searches
_ENDED = (Reason.SESSION_FENCED, Reason.SESSION_NOT_FOUND)  # of a session that made room by ending


class Eviction:
    """Makes room in the memory of engines.

    Args:
        wait_until_stored: returns when the store has a session as it is now.
        may_leave: returns which sessions [N] of an engine, by slot, memory may drop: the store has them.
    """

    def __init__(
        self,
        wait_until_stored: Callable[[SessionRef], Awaitable[None]],
        may_leave: Callable[[Engine, Int64s], Flags],
    ) -> None:
        self._wait_until_stored = wait_until_stored
        self._may_leave = may_leave
        self._newcomers: Counter[Engine] = Counter()  # sessions that want room
        self._tasks: dict[Engine, asyncio.Task[None]] = {}

    async def make_room(self, engine: Engine) -> None:
        """Returns when another session has room.

        Raises:
            StreamcellError: SESSIONS_FULL, every session has work under way; STORE_UNAVAILABLE.
        """
        self._newcomers[engine] += 1
        try:
            while not engine.residents.has_free_slot:
                await asyncio.shield(self._task(engine))
        finally:
            self._newcomers[engine] -= 1

    def forget(self, engine: Engine) -> None:
        """Forgets an engine that leaves memory."""
        self._newcomers.pop(engine, None)

    def _task(self, engine: Engine) -> "asyncio.Task[None]":
        """Returns the task that makes room for all newcomers: alone each would choose the same sessions."""
        if engine not in self._tasks:
            self._tasks[engine] = asyncio.create_task(self._evict_once(engine))
        return self._tasks[engine]

    async def _evict_once(self, engine: Engine) -> None:
        """Makes room once; a newcomer who then finds none starts the next task."""
        try:
            await self._evict(engine)
        finally:
            del self._tasks[engine]

    async def _evict(self, engine: Engine) -> None:
        """Evicts at least as many idle sessions as want room; stores them first if none is stored whole."""
        share = 1 + engine.residents.max_sessions // _EVICTED_SHARE
        idle = engine.at_rest(max(share, self._newcomers[engine]))
        if not idle:
            raise errors.refusal(Reason.SESSIONS_FULL, max_resident_sessions=engine.residents.max_sessions)
        slots = np.array(idle, np.int64)
        stored: list[int] = slots[self._may_leave(engine, slots)].tolist()
        for slot in stored:
            engine.residents.evict(slot)
        if stored:
            return
        writes = [self._wait_until_stored(SessionRef.at(engine, slot)) for slot in idle]
        for outcome in await asyncio.gather(*writes, return_exceptions=True):
            has_ended = isinstance(outcome, StreamcellError) and outcome.reason in _ENDED
            if isinstance(outcome, BaseException) and not has_ended:
                raise outcome
