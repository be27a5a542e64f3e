"""The engines of a server by model and version: which version leads, and on which one a session goes on.

One version of each model leads: it gets the new sessions for which the client names no version. Does not know
sessions, nor how a version is loaded.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Protocol

from service import errors
from service.engine.engine import Engine
from service.engine.snapshot import Model
from service.errors import Reason, StreamcellError


class NotLoaded(StreamcellError):  # noqa: N818 (no failure: the version can be loaded)
    """A version is not in memory, but its file is on disk: `Versions.load` loads it."""


class VersionsOnDisk(Protocol):
    """Versions that are not in memory but can be loaded; see `watcher.ModelWatcher`."""

    def has(self, model: str) -> bool:
        """Returns whether "NAME/VERSION" was there at the last look, and may be served."""

    async def load(self, model: str) -> bool:
        """Loads "NAME/VERSION" if it is there and can be served; returns whether it is in memory then."""


class Versions:
    """The engines in memory.

    Args:
        engines: the engines to begin with.
        migrates: whether sessions of other versions move to the one that leads, if their layouts are equal.
    """

    def __init__(self, engines: Iterable[Engine], *, migrates: bool = False) -> None:
        self.engines: list[Engine] = []
        self.on_disk: VersionsOnDisk | None = None
        """More versions, which can be loaded; None where there are no others."""
        self.on_change: list[Callable[[], None]] = []
        """Called when a version has come, gone or begun to lead."""
        self.migrates = migrates
        self._by_model: dict[str, Engine] = {}
        self._superseded: set[str] = set()  # "NAME/VERSION" whose sessions have moved to another one
        self._put(engines)

    def get(self, model: str) -> Engine | None:
        """Returns the engine in memory for "NAME/VERSION", or for "NAME" the one that leads."""
        return self._by_model.get(model)

    def choose(self, model: str) -> Engine:
        """Returns the engine for "NAME", "NAME/VERSION" or, where one model is served, "".

        Raises:
            NotLoaded: the version can be loaded.
            StreamcellError: MODEL_NOT_FOUND; INVALID_ARGUMENT for "" where several models are served.
        """
        engine = self._by_model.get(model)
        if engine is not None:
            return engine
        if model:
            missing = self._not_served(model)
            if self.on_disk is not None and self.on_disk.has(model):
                raise NotLoaded(missing.reason, missing.message, metadata=missing.metadata)
            raise missing
        names = sorted({engine.name for engine in self.engines})
        if len(names) > 1:
            raise errors.invalid_argument("model", f"several are served, name one of {', '.join(names)}")
        return self._by_model[names[0]]

    def add(self, engine: Engine) -> None:
        """Adds an engine, beside the one that leads if there is one."""
        if engine.name in self._by_model:
            self._supersede(engine)
        self._put([*self.engines, engine])

    def lead(self, engine: Engine) -> list[Engine]:
        """Makes an engine lead; returns the engines of its model that begin to retire."""
        engine.resume()
        self._superseded.discard(str(engine.model))
        siblings = [each for each in self.engines if each.name == engine.name and each is not engine]
        retiring = [each for each in siblings if not each.succession.is_retiring]
        self._by_model[engine.name] = engine
        for sibling in siblings:
            self._supersede(sibling)
        self._put(self.engines)
        return retiring

    def remove(self, engine: Engine) -> None:
        """Removes an engine that is unused and does not lead."""
        self._put([each for each in self.engines if each is not engine])
        self._by_model[engine.name].sessions.remember_endings(engine.sessions)

    async def load(self, model: str) -> None:
        """Loads "NAME/VERSION" if it is not in memory and its file was there at the last look."""
        if self.on_disk is not None and model not in self._by_model and self.on_disk.has(model):
            await self.on_disk.load(model)

    async def engine_of(self, model: Model) -> Engine:
        """Returns the engine on which a session of a model goes on, loaded if need be.

        Raises:
            StreamcellError: MODEL_NOT_FOUND; MODEL_NOT_HERE, this server has older versions alone;
                MODEL_CHANGED, another artifact is served under its name.
        """
        leader = self._follower_of(model)
        # A newer version may be on disk and not noticed yet: sessions of other servers may run on it.
        if leader is not None and version_order(model.version) < version_order(leader.version):
            return leader
        if self.on_disk is not None and str(model) not in self._by_model:
            await self.on_disk.load(str(model))
        engine = self._by_model.get(str(model))
        if engine is None:
            leader = self._by_model.get(model.name)
            if leader is not None and version_order(model.version) > version_order(leader.version):
                # An older version would take the session back; a server with the newer one goes on with it.
                raise errors.refusal(Reason.MODEL_NOT_HERE, model=str(model), newest=str(leader.model))
            raise self._not_served(str(model))
        if engine.version == model.version and engine.model != model:
            raise errors.refusal(Reason.MODEL_CHANGED, case="other_artifact", model=str(model))
        return engine

    def has_taken_over(self, engine: Engine, model: str) -> bool:
        """Returns whether sessions that began on "NAME/VERSION" may run on an engine of the same name now."""
        name, _, _ = model.rpartition("/")
        return model in self._superseded and name == engine.name

    def _follower_of(self, model: Model) -> Engine | None:
        """Returns the version to which sessions of a model move by themselves, if there is one."""
        leader = self._by_model.get(model.name)
        if leader is None or not self.migrates or leader.version == model.version:
            return None
        # A snapshot may claim anything: any name, "NAME/VERSION" too, and sizes that are not the layout's.
        is_alike = (
            dataclasses.replace(model, version=leader.version, digest=leader.model.digest) == leader.model
        )
        return leader if is_alike else None

    def _supersede(self, engine: Engine) -> None:
        follower = self._follower_of(engine.model)
        engine.supersede(follower)
        if follower is not None:
            self._superseded.add(str(engine.model))

    def _put(self, engines: Iterable[Engine]) -> None:
        # A new list, so that a loop over the old one goes on undisturbed.
        self.engines = sorted(engines, key=lambda engine: (engine.name, version_order(engine.version)))
        self._by_model = {str(engine.model): engine for engine in self.engines}
        # Of each name the newest version that does not retire comes last, and stays in the dictionary.
        leaders = sorted(self.engines, key=lambda engine: not engine.succession.is_retiring)
        self._by_model.update({engine.name: engine for engine in leaders})
        for on_change in self.on_change:
            on_change()

    def _not_served(self, model: str) -> StreamcellError:
        return errors.refusal(Reason.MODEL_NOT_FOUND, model=model, served=", ".join(sorted(self._by_model)))


def version_order(version: str) -> tuple[bool, int, str]:
    """Returns the sort key of a version: numbers come after words, and are compared as numbers."""
    return (True, int(version), "") if version.isdecimal() else (False, 0, version)
