"""Watches the models' folder: loads new versions while serving, and makes the newest one lead.

Slow work runs on a thread, so that serving goes on. docs/adr/0007-model-versions.md decides which version
leads, and on which version sessions go on. Does not know protos, nor how a file becomes an engine.
"""

import asyncio
import contextlib

from service.background import BackgroundTask
from service.catalog import loader as loading
from service.catalog.catalog import Catalog
from service.catalog.folder import Folder, Version
from service.catalog.loader import Loader
from service.catalog.retirement import Retirement
from service.catalog.versions import version_order
from service.config import Config
from service.engine.engine import Engine
from service.errors import ConfigError
from service.runtime import artifact
from service.telemetry import log
from service.telemetry.metrics import Metrics


class ModelWatcher:
    """Loads the versions that the folder has, and makes the newest one of each name lead.

    Args:
        settings: how often to look at the folder.
        folder: has been looked at once; each of its versions is in memory, or is rejected by `reject` next.
        loader: makes engines from files.
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
        self._served_files = {  # by "NAME/VERSION": the files of the versions in memory
            model: version
            for model, version in folder.versions.items()
            if catalog.versions.get(model) is not None
        }
        self._rejected_files: dict[str, Version] = {}
        self._folder_error = ""  # as it was logged last; empty when the folder could be read
        self._allowed_error = ""  # the same, of the list of allowed artifacts
        self._lock = asyncio.Lock()  # one look or load at a time: both await between reading and changing
        self._is_look_due = asyncio.Event()
        self.retirement = Retirement(catalog, self._forget, metrics.count_background_fault)
        self._task = BackgroundTask("models_watch", self._turn, metrics.count_background_fault)

    def start(self) -> None:
        """Begins to watch."""
        if self._versions.migrates:  # as if the newest version had come last
            for name in {engine.name for engine in self._versions.engines}:
                leader = self._versions.get(name)
                if leader is not None:
                    self._make_lead(leader)
        self._task.start()
        self.retirement.start()

    async def stop(self) -> None:
        """Ends watching; what is loaded stays loaded."""
        await self._task.stop()
        await self.retirement.stop()

    def look_soon(self) -> None:
        """Looks at the folder now; the caller vouches that the files in it are complete."""
        self._is_look_due.set()

    # -- One version, by its name: see `versions.VersionsOnDisk` -----------------------------------------

    def has(self, model: str) -> bool:
        """Returns whether "NAME/VERSION" was there at the last look, and may be served."""
        version = self._folder.versions.get(model)
        return version is not None and not self._is_rejected(version)

    async def load(self, model: str) -> bool:
        """Loads "NAME/VERSION" beside the version that leads; returns whether it is in memory."""
        async with self._lock:
            if self._versions.get(model) is None and not self.has(model):
                await self._look_at_folder()
            return await self._load_if_absent(model) is not None

    def reject(self, version: Version, why: str) -> None:
        """Records that a file cannot be served; it is tried again when it or the allowed list changes."""
        self._rejected_files[str(version)] = version
        self._metrics.models_rejected.inc()
        log.warning("model_rejected", model=str(version), why=why, effect="nothing changes")

    # -- All versions, by a look at the folder -----------------------------------------------------------

    async def look(self, *, are_complete: bool = False) -> None:
        """Looks at the folder; from then on the newest version of each name that can be served leads.

        Args:
            are_complete: whether all files are complete; otherwise a file counts once it is unchanged at a
                second look.
        """
        async with self._lock:
            await self._look_at_folder()
            found = list(self._folder.versions.values())
            for name in sorted({version.name for version in found}):
                await self._choose_leader(name, are_complete)
            for version in found:
                if are_complete or self._folder.is_unchanged(version):
                    await self._reject_if_replaced(version)

    async def _turn(self) -> None:
        """Waits until the folder is due or a look is asked for, and looks."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._poll_seconds or None):
                await self._is_look_due.wait()
        is_asked = self._is_look_due.is_set()
        self._is_look_due.clear()
        await self.look(are_complete=is_asked)

    async def _look_at_folder(self) -> None:
        await self._look_at_list()
        try:
            await asyncio.to_thread(self._folder.look)
        except (ConfigError, OSError) as error:
            if str(error) != self._folder_error:
                log.warning("models_unreadable", why=str(error), effect="nothing changes")
            self._folder_error = str(error)
        else:
            self._folder_error = ""

    async def _look_at_list(self) -> None:
        """Reads the list of allowed artifacts again; once it has changed, rejected files are tried again."""
        try:
            has_changed = await asyncio.to_thread(self._loader.allowed.look)
        except ConfigError as error:
            if str(error) != self._allowed_error:
                log.warning("allowed_artifacts_unusable", why=str(error), effect="the list stays as it was")
            self._allowed_error = str(error)
            return
        self._allowed_error = ""
        if has_changed:
            self._rejected_files.clear()

    async def _choose_leader(self, name: str, are_complete: bool) -> None:
        """Makes the newest version of a name lead that can be served."""
        leader = self._versions.get(name)
        found = [version for version in self._folder.versions.values() if version.name == name]
        if leader is not None and not self._is_gone(leader, are_complete):
            least = version_order(leader.version)
            found = [version for version in found if version_order(version.version) > least]
        for version in sorted(found, key=lambda each: version_order(each.version), reverse=True):
            if are_complete or self._folder.is_unchanged(version):
                engine = await self._load_if_absent(str(version))
                if engine is not None:
                    self._make_lead(engine)
                    return

    def _is_gone(self, engine: Engine, are_complete: bool) -> bool:
        """Returns whether the folder no longer has an engine's version, by one look or by two."""
        model = str(engine.model)
        return model not in self._folder.versions if are_complete else self._folder.is_gone(model)

    async def _reject_if_replaced(self, version: Version) -> None:
        """Rejects a file of another content than the one from which the version in memory was loaded."""
        engine = self._versions.get(str(version))
        known = (self._served_files.get(str(version)), self._rejected_files.get(str(version)))
        if engine is None or version in known:
            return
        try:
            digest = await asyncio.to_thread(artifact.digest_of, version.path)
        except OSError:  # the next look finds out more
            return
        if digest == engine.model.digest:
            self._served_files[str(version)] = version
        else:
            self.reject(version, "it differs from the one that is served: a new artifact takes a new version")

    # -- Versions in memory ------------------------------------------------------------------------------

    async def _load_if_absent(self, model: str) -> Engine | None:
        """Returns the engine of "NAME/VERSION", loaded if need be; None if the version cannot be served."""
        engine = self._versions.get(model)
        version = self._folder.versions.get(model)
        if engine is not None or version is None or self._is_rejected(version):
            return engine
        try:
            warm = await asyncio.to_thread(self._loader.load, version)
        except Exception as error:  # a script may raise anything
            self.reject(version, loading.reason_of(error))
            return None
        engine = self._loader.make_engine(warm)
        self._catalog.persistence.attach(engine)
        self._versions.add(engine)
        self._served_files[model] = version
        self.retirement.wake()
        return engine

    def _make_lead(self, engine: Engine) -> None:
        for other in self._versions.lead(engine):
            log.info("model_retiring", model=str(other.model), successor=str(engine.model))
        self.retirement.wake()

    def _is_rejected(self, version: Version) -> bool:
        return self._rejected_files.get(str(version)) == version

    def _forget(self, engine: Engine) -> None:
        """Forgets a version that has left memory."""
        self._loader.drop_sample(engine)
        del self._served_files[str(engine.model)]
