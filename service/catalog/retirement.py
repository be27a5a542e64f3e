"""Versions that another one has replaced: moves their sessions if they may move, and unloads empty versions.

Does not know which version leads, nor what is on disk.
"""

import asyncio
from collections.abc import Callable

from service.background import BackgroundTask
from service.catalog import migration
from service.catalog.catalog import Catalog
from service.engine.engine import Engine
from service.telemetry import log

_PAUSE_SECONDS = 1.0  # between two checks whether a version is unused
_BUSY_PAUSE_SECONDS = 0.05  # the same while sessions that are to move have work under way


class Retirement:
    """Moves the sessions of retiring versions, and unloads each version after its last session.

    Args:
        catalog: the engines in memory.
        on_unload: called with an engine that has left memory.
        count_fault: called with the task's name when one of its turns raised.
    """

    def __init__(
        self, catalog: Catalog, on_unload: Callable[[Engine], None], count_fault: Callable[[str], None]
    ) -> None:
        self._versions = catalog.versions
        self._catalog = catalog
        self._on_unload = on_unload
        self._is_needed = asyncio.Event()
        self._task = BackgroundTask("models_retire", self._turn, count_fault)

    def start(self) -> None:
        """Starts the task."""
        self._task.start()

    async def stop(self) -> None:
        """Stops the task; what is loaded stays loaded."""
        await self._task.stop()

    def wake(self) -> None:
        """Looks for retiring versions now: there may be new ones."""
        self._is_needed.set()

    async def _turn(self) -> None:
        """Waits until a version retires, then advances all retiring ones until there are none."""
        await self._is_needed.wait()
        if any(engine.succession.is_retiring for engine in self._versions.engines):
            await asyncio.sleep(self.advance())
        else:
            self._is_needed.clear()

    def advance(self) -> float:
        """Moves some sessions, and unloads versions that are unused.

        Returns:
            How many seconds later there is more to do.
        """
        pause = _PAUSE_SECONDS
        for engine in [each for each in self._versions.engines if each.succession.is_retiring]:
            if engine.succession.successor is not None and len(engine.sessions):
                pause = min(pause, 0.0 if migration.migrate_some(engine) else _BUSY_PAUSE_SECONDS)
            is_used = len(engine.sessions) or engine.succession.num_arriving or not engine.is_idle
            if not is_used:
                self._unload(engine)
        return pause

    def _unload(self, engine: Engine) -> None:
        self._versions.remove(engine)
        self._catalog.persistence.detach(engine)
        self._on_unload(engine)
        engine.unload()
        log.info("model_left", model=str(engine.model))
