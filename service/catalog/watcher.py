"""Watches the models' folder: new versions come while serving, old ones leave with their last session.

Whatever takes long runs on a thread, so that serving goes on. Which version leads and what becomes of
sessions is in docs/adr/0007-model-versions.md. Does not know protos, nor how a model is made ready.
"""

import asyncio
import contextlib

from service.background import BackgroundTask
from service.catalog import loader as loading
from service.catalog import migration
from service.catalog.catalog import Catalog
from service.catalog.folder import Folder, Version
from service.catalog.loader import Loader
from service.catalog.versions import version_order
from service.config import Config
from service.engine.engine import Engine
from service.errors import ConfigError
from service.runtime import artifact
from service.telemetry import log
from service.telemetry.metrics import Metrics

_RETIRE_SECONDS = 1.0  # how often a version that is to leave is checked
_BUSY_SECONDS = 0.05  # the same while sessions are to move that have work under way


class ModelWatcher:
    """Loads the versions that the folder has, makes the newest lead, and unloads those that are unused.

    Args:
        settings: how often the folder is looked at.
        folder: looked at once before; what it has is in memory, or will be rejected by `reject`.
        loader: makes engines of files.
        catalog: the engines in memory.
        metrics: instruments.
    """

    def __init__(
        self,
        settings: Config,
        folder: Folder,
        loader: Loader,
        catalog: Catalog,
        metrics: Metrics,
    ) -> None:
        self._versions = catalog.versions
        self._poll_seconds = settings.models_poll_seconds
        self._folder = folder
        self._loader = loader
        self._catalog = catalog
        self._metrics = metrics
        self._taken: dict[str, Version] = {  # the files of those in memory
            model: version
            for model, version in folder.versions.items()
            if catalog.versions.get(model) is not None
        }
        self._rejected: dict[str, Version] = {}
        self._trouble = ""
        self._one_at_a_time = asyncio.Lock()
        self._is_asked = asyncio.Event()
        self._retires = asyncio.Event()
        self._tasks = (
            BackgroundTask("models_watch", self._watch, metrics.count_background_fault),
            BackgroundTask("models_retire", self._retire, metrics.count_background_fault),
        )

    def start(self) -> None:
        """Begins to watch."""
        if self._versions.migrates:  # as if the newest had come last
            for name in {engine.name for engine in self._versions.engines}:
                leader = self._versions.get(name)
                if leader is not None:
                    self._lead(leader)
        for task in self._tasks:
            task.start()

    async def stop(self) -> None:
        """Ends watching; what is loaded stays as it is."""
        for task in self._tasks:
            await task.stop()

    def look_soon(self) -> None:
        """Looks at the folder now; the caller vouches that the files in it are complete."""
        self._is_asked.set()

    # -- The versions on disk ----------------------------------------------------------------------

    def has(self, model: str) -> bool:
        """Returns whether "NAME/VERSION" was there at the last look, and may be served."""
        version = self._folder.versions.get(model)
        return version is not None and not self._is_rejected(version)

    async def load(self, model: str) -> bool:
        """Loads "NAME/VERSION" beside the version that leads; returns whether it is in memory."""
        async with self._one_at_a_time:
            if self._versions.get(model) is None and not self.has(model):
                await self._look_at_folder()
            return await self._in_memory(model) is not None

    # -- Versions come -----------------------------------------------------------------------------

    async def look(self, *, is_whole: bool = False) -> None:
        """Looks at the folder; from then on the newest version of each name that can be served leads.

        Args:
            is_whole: whether files are complete; otherwise a file counts once it is unchanged at a second
                look.
        """
        async with self._one_at_a_time:
            await self._look_at_folder()
            found = list(self._folder.versions.values())
            for name in sorted({version.name for version in found}):
                await self._choose(name, is_whole)
            for version in found:
                if is_whole or self._folder.is_unchanged(version):
                    await self._compare(version)

    async def _choose(self, name: str, is_whole: bool) -> None:
        """Makes the newest version of a name lead that can be served."""
        leader = self._versions.get(name)
        found = [version for version in self._folder.versions.values() if version.name == name]
        if leader is not None and not self._is_gone(leader, is_whole):
            least = version_order(leader.version)
            found = [version for version in found if version_order(version.version) > least]
        for version in sorted(found, key=lambda each: version_order(each.version), reverse=True):
            if is_whole or self._folder.is_unchanged(version):
                engine = await self._in_memory(str(version))
                if engine is not None:
                    self._lead(engine)
                    return

    def _is_gone(self, engine: Engine, is_whole: bool) -> bool:
        model = str(engine.model)
        return model not in self._folder.versions if is_whole else self._folder.is_gone(model)

    def _lead(self, engine: Engine) -> None:
        for other in self._versions.lead(engine):
            log.info("model_retiring", model=str(other.model), successor=str(engine.model))
        self._retires.set()

    async def _in_memory(self, model: str) -> Engine | None:
        """Returns the engine of "NAME/VERSION", loaded if need be; None where it cannot be served."""
        engine = self._versions.get(model)
        version = self._folder.versions.get(model)
        if engine is not None or version is None or self._is_rejected(version):
            return engine
        try:
            loaded = await asyncio.to_thread(self._loader.load, version)
        except Exception as error:  # a script may raise whatever it likes
            self.reject(version, loading.why(error))
            return None
        engine = self._loader.engine(loaded)
        self._catalog.persistence.attach(engine)
        self._versions.add(engine)
        self._taken[model] = version
        self._retires.set()
        return engine

    def reject(self, version: Version, why: str) -> None:
        """Logs that a file cannot be served; it is tried again once it has changed."""
        self._rejected[str(version)] = version
        self._metrics.models_rejected.inc()
        log.warning("model_rejected", model=str(version), why=why, effect="nothing changes")

    def _is_rejected(self, version: Version) -> bool:
        return self._rejected.get(str(version)) == version

    async def _compare(self, version: Version) -> None:
        """Rejects a file that has replaced the one in memory."""
        engine = self._versions.get(str(version))
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
        """Waits until the folder is due or somebody asks, and looks at it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._poll_seconds or None):
                await self._is_asked.wait()
        is_asked = self._is_asked.is_set()
        self._is_asked.clear()
        await self.look(is_whole=is_asked)

    # -- Versions leave ----------------------------------------------------------------------------

    async def _retire(self) -> None:
        """Waits until a version retires, and retires all that do for as long as there are any."""
        await self._retires.wait()
        if any(engine.succession.is_retiring for engine in self._versions.engines):
            await asyncio.sleep(self.retire())
        else:
            self._retires.clear()

    def retire(self) -> float:
        """Moves sessions that are to move, and unloads versions that are unused.

        Returns:
            How many seconds later there is more to do.
        """
        pause = _RETIRE_SECONDS
        for engine in [each for each in self._versions.engines if each.succession.is_retiring]:
            if engine.succession.successor is not None and len(engine.sessions):
                pause = min(pause, 0.0 if migration.migrate_some(engine) else _BUSY_SECONDS)
            is_used = len(engine.sessions) or engine.succession.num_arriving or not engine.is_idle
            if not is_used:
                self._unload(engine)
        return pause

    def _unload(self, engine: Engine) -> None:
        self._versions.remove(engine)
        self._catalog.persistence.detach(engine)
        self._loader.drop(engine)
        del self._taken[str(engine.model)]
        engine.unload()
        log.info("model_left", model=str(engine.model))
