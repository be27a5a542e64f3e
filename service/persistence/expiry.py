"""Removes rows from the store that were idle for too long. Does not know how sessions in memory expire."""

import contextlib
from collections.abc import Callable, Sequence

from service.engine.engine import Engine
from service.errors import Reason
from service.persistence.availability import Availability
from service.persistence.wall_clock import WallClock
from service.store.base import Store, StoreError

_MAX_ROWS = 1000  # removed at once


class Expiry:
    """Expires rows, and keeps the rows of sessions in memory from seeming idle.

    Args:
        store: the store.
        availability: asks the store.
        engines: returns the engines that there are now.
        ttl_seconds: how long a session may be idle; 0: for ever.
        clock: the clock of the rows.
    """

    def __init__(
        self,
        store: Store,
        availability: Availability,
        engines: Callable[[], Sequence[Engine]],
        *,
        ttl_seconds: float,
        clock: WallClock,
    ) -> None:
        self._store = store
        self._availability = availability
        self._engines = engines
        self._ttl_seconds = ttl_seconds
        self._clock = clock

    async def sweep(self) -> None:
        """Marks sessions for a write whose rows seem idle, and removes rows that are idle.

        No row is removed before this server has run for as long as a session may be idle. So neither a clock
        that was set while the server was down nor a long outage takes a session before its client could come
        back.
        """
        if not self._ttl_seconds:
            return
        now, ttl_ns = self._clock.now_ns(), round(self._ttl_seconds * 1e9)
        for engine in self._engines():
            durability = engine.sessions.durability
            stale = durability.written_before(engine.sessions.all_slots(), now - ttl_ns // 2)
            durability.mark_changed(stale)
        if now - self._clock.began_ns < ttl_ns:
            return
        last_used = self._clock.unix_seconds(now) - self._ttl_seconds
        with contextlib.suppress(StoreError):  # the next write records the failure
            gone = await self._availability.ask(self._store.expire(last_used, _MAX_ROWS))
            for key in gone:
                self._engines()[0].sessions.endings.remember(key, Reason.SESSION_EXPIRED)
