"""Models that change while the server serves: new versions come, old ones leave with their last sessions.

Watches the models' folder; whatever takes long is done on a thread, so that serving goes on. Which version
leads and what becomes of sessions: docs/adr/0007-model-versions.md. Does not know protos, nor how a model is
made ready.
"""

import asyncio
import contextlib
from collections.abc import Iterator

from service.catalog import loader as loading
from service.catalog import migration as moves
from service.catalog.catalog import Catalog
from service.catalog.folder import Folder, Version
from service.catalog.loader import Loader
from service.catalog.versions import version_order
from service.config import Config
from service.engine.engine import Engine
from service.errors import ConfigError
from service.runtime import artifact
from service.telemetry import faults, log
from service.telemetry.metrics import Metrics

_TEND_SECONDS = 1.0  # how often a version that is to leave is asked whether it can
_BUSY_SECONDS = 0.05  # the same while sessions are to move that have work under way


class Models:
    """The versions in memory, and those in the folder.

    Args:
        folder: looked at once; what it has is in memory, or rejected: see `reject`.
    """

    def __init__(
        self,
        settings: Config,
        folder: Folder,
        loader: Loader,
        catalog: Catalog,
        metrics: Metrics,
    ) -> None:
        self._poll_seconds = settings.models_poll_seconds
        self._folder = folder
        self._loader = loader
        self._catalog = catalog
        self._metrics = metrics
        self._taken: dict[str, Version] = {  # the files of those in memory
            model: version for model, version in folder.versions.items() if catalog.get(model) is not None
        }
        self._rejected: dict[str, Version] = {}
        self._trouble = ""
        self._one_at_a_time = asyncio.Lock()
        self._told = asyncio.Event()
        self._retires = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to watch."""
        if self._catalog.migrates:  # as if the newest had come last
            for name in {engine.name for engine in self._catalog.engines}:
                leader = self._catalog.get(name)
                if leader is not None:
                    self._lead(leader)
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._tend())]

    async def stop(self) -> None:
        """Ends; what is loaded is as it is."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def look_soon(self) -> None:
        """Has the folder looked at now, by somebody who says that what lies in it is whole."""
        self._told.set()

    # -- The shelf of the catalog ------------------------------------------------------------------

    def has(self, model: str) -> bool:
        """Tells whether "NAME/VERSION" was there when it was last looked for, and may be served."""
        version = self._folder.versions.get(model)
        return version is not None and not self._is_rejected(version)

    async def load(self, model: str) -> bool:
        """Has "NAME/VERSION" in the catalog, beside the one that leads; tells whether it is."""
        async with self._one_at_a_time:
            if self._catalog.get(model) is None and not self.has(model):
                await self._look_at_folder()
            return await self._in_memory(model) is not None

    # -- Versions come -----------------------------------------------------------------------------

    async def look(self, *, is_whole: bool = False) -> None:
        """Looks at the folder: the newest version of each name that can be served leads from then on.

        Args:
            is_whole: whether files are taken as they are; else a look later, when they have not changed.
        """
        async with self._one_at_a_time:
            await self._look_at_folder()
            found = list(self._folder.versions.values())
            for name in sorted({version.name for version in found}):
                await self._choose(name, is_whole)
            for version in found:
                if is_whole or self._folder.is_settled(version):
                    await self._compare(version)

    async def _choose(self, name: str, is_whole: bool) -> None:
        """Has the newest version of a name lead that can be served."""
        leader = self._catalog.get(name)
        found = [version for version in self._folder.versions.values() if version.name == name]
        if leader is not None and not self._is_gone(leader, is_whole):
            least = version_order(leader.version)
            found = [version for version in found if version_order(version.version) > least]
        for version in sorted(found, key=lambda each: version_order(each.version), reverse=True):
            if is_whole or self._folder.is_settled(version):
                engine = await self._in_memory(str(version))
                if engine is not None:
                    self._lead(engine)
                    return

    def _is_gone(self, engine: Engine, is_whole: bool) -> bool:
        model = str(engine.model)
        return model not in self._folder.versions if is_whole else self._folder.is_gone(model)

    def _lead(self, engine: Engine) -> None:
        for other in self._catalog.lead(engine):
            log.info("model_retiring", model=str(other.model), successor=str(engine.model))
        self._retires.set()

    async def _in_memory(self, model: str) -> Engine | None:
        """Returns the engine of "NAME/VERSION", loaded if need be; None where it cannot be served."""
        engine = self._catalog.get(model)
        version = self._folder.versions.get(model)
        if engine is not None or version is None or self._is_rejected(version):
            return engine
        try:
            loaded = await asyncio.to_thread(self._loader.load, version)
        except Exception as error:  # a script may raise whatever it likes
            self.reject(version, loading.why(error))
            return None
        engine = self._loader.engine(loaded)
        if self._catalog.keeper is not None:
            self._catalog.keeper.watch(engine)
        self._catalog.add(engine)
        self._taken[model] = version
        self._retires.set()
        return engine

    def reject(self, version: Version, why: str) -> None:
        """Tells that a file cannot be served; it is tried again when it is another."""
        self._rejected[str(version)] = version
        self._metrics.models_rejected.inc()
        log.warning("model_rejected", model=str(version), why=why, effect="nothing changes")

    def _is_rejected(self, version: Version) -> bool:
        return self._rejected.get(str(version)) == version

    async def _compare(self, version: Version) -> None:
        """Rejects a file that was put in the place of the one in memory."""
        engine = self._catalog.get(str(version))
        is_known = version in (self._taken.get(str(version)), self._rejected.get(str(version)))
        if engine is None or is_known:
            return
        try:
            digest = await asyncio.to_thread(artifact.digest_of, version.path)
        except OSError:  # the next look tells more
            return
        if digest == engine.model.digest:
            self._taken[str(version)] = version
        else:
            self.reject(version, "it differs from the one that is served: a new artifact takes a new version")

    async def _look_at_folder(self) -> None:
        try:
            await asyncio.to_thread(self._folder.look)
        except (ConfigError, OSError) as error:
            if str(error) != self._trouble:
                log.warning("models_unreadable", why=str(error), effect="nothing changes")
            self._trouble = str(error)
        else:
            self._trouble = ""

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds or None):
                    await self._told.wait()
            is_told = self._told.is_set()
            self._told.clear()
            with _reported():
                await self.look(is_whole=is_told)

    # -- Versions leave ----------------------------------------------------------------------------

    async def _tend(self) -> None:
        while True:
            await self._retires.wait()
            self._retires.clear()
            while any(engine.is_retiring for engine in self._catalog.engines):
                pause = _TEND_SECONDS
                with _reported():
                    pause = self.tend()
                await asyncio.sleep(pause)

    def tend(self) -> float:
        """Moves sessions on that are to move, and lets go of versions that are unused.

        Returns how many seconds later there is more to do.
        """
        pause = _TEND_SECONDS
        for engine in [each for each in self._catalog.engines if each.is_retiring]:
            if engine.successor is not None and len(engine.sessions):
                pause = min(pause, 0.0 if moves.move_some(engine) else _BUSY_SECONDS)
            is_used = len(engine.sessions) or engine.num_coming or not engine.is_idle
            if not is_used:
                self._let_go(engine)
        return pause

    def _let_go(self, engine: Engine) -> None:
        self._catalog.remove(engine)
        if self._catalog.keeper is not None:
            self._catalog.keeper.unwatch(engine)
        self._loader.drop(engine)
        del self._taken[str(engine.model)]
        engine.leave()
        log.info("model_left", model=str(engine.model))


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Has a fault be reported: one is not the end of a task that goes on as long as the server."""
    try:
        yield
    except Exception as exception:
        faults.report(exception)
