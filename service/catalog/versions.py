"""The engines of a server by model and version: which one leads, and on which a session goes on.

Of each name one version *leads*: it takes the sessions for which no version is named. Does not know sessions,
nor how a version comes into memory.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from service import errors
from service.engine.engine import Engine
from service.engine.snapshot import Model
from service.errors import Reason, StreamcellError


class NotLoaded(StreamcellError):  # noqa: N818 (no failure: it tells to load)
    """A version of a model is not in memory, and its folder is there: `Versions.load` brings it."""


class Shelf(Protocol):
    """What has the versions that are not in memory; see `models.Models`."""

    def has(self, model: str) -> bool:
        """Tells whether "NAME/VERSION" was there when it last looked, and may be served."""

    async def load(self, model: str) -> bool:
        """Has it in memory, unless it is not there now or cannot be served; tells whether it is."""


class Versions:
    """The engines in memory; with a `shelf`, more versions may be on it.

    Args:
        migrates: whether sessions of other versions go on on the one that leads, where states mean the same.
    """

    def __init__(self, engines: Iterable[Engine], *, migrates: bool = False) -> None:
        self.engines: list[Engine] = []
        self.shelf: Shelf | None = None
        self.when_changed: list[Callable[[], None]] = []
        """Called when versions have come, gone or taken over."""
        self._by_model: dict[str, Engine] = {}
        self.migrates = migrates
        self._went_on: set[str] = set()  # versions whose sessions go on on another
        self._put(engines)

    def get(self, model: str) -> Engine | None:
        """Returns the engine in memory for "NAME/VERSION", or for "NAME" the one that leads."""
        return self._by_model.get(model)

    def add(self, engine: Engine) -> None:
        """Takes in an engine, beside the one that leads if there is one."""
        if engine.name in self._by_model:
            self._supersede(engine)
        self._put([*self.engines, engine])

    def lead(self, engine: Engine) -> list[Engine]:
        """Has an engine lead; returns those of its name that begin to retire by it."""
        engine.resume()
        self._went_on.discard(str(engine.model))
        others = [each for each in self.engines if each.name == engine.name and each is not engine]
        begin = [each for each in others if not each.is_retiring]
        self._by_model[engine.name] = engine
        for other in others:
            self._supersede(other)
        self._put(self.engines)
        return begin

    def remove(self, engine: Engine) -> None:
        """Lets go of an engine that is unused and does not lead."""
        self._put([each for each in self.engines if each is not engine])
        self._by_model[engine.name].sessions.remember_all(engine.sessions)

    async def load(self, model: str) -> None:
        """Has "NAME/VERSION" in memory, if it is known to be on the shelf."""
        if self.shelf is not None and model not in self._by_model and self.shelf.has(model):
            await self.shelf.load(model)

    async def engine_of(self, model: Model) -> Engine:
        """Returns the engine on which a session of a model goes on, which is loaded if need be.

        Raises:
            StreamcellError: MODEL_NOT_FOUND; MODEL_CHANGED, another artifact is served under its name.
        """
        leader = self._follower_of(model)
        # A newer version may be on the shelf, not noticed yet: other servers' sessions may run on it.
        if leader is not None and version_order(model.version) < version_order(leader.version):
            return leader
        if self.shelf is not None and str(model) not in self._by_model:
            await self.shelf.load(str(model))
        engine = self._by_model.get(str(model)) or self._follower_of(model)
        if engine is None:
            raise self._not_served(str(model))
        if engine.version == model.version and engine.model != model:
            raise errors.refusal(Reason.MODEL_CHANGED, case="other_artifact", model=str(model))
        return engine

    def goes_on(self, model: str, engine: Engine) -> bool:
        """Tells whether sessions that began on "NAME/VERSION" are on an engine now: callers still name it."""
        name, _, _ = model.rpartition("/")
        return model in self._went_on and name == engine.name

    def _follower_of(self, model: Model) -> Engine | None:
        """Returns the version on which sessions of a model go on by themselves, if there is one."""
        leader = self._by_model.get(model.name)
        if leader is None or not self.migrates or leader.version == model.version:
            return None
        means_the_same = (leader.name, leader.model.layout) == (model.name, model.layout)
        return leader if means_the_same else None

    def _supersede(self, engine: Engine) -> None:
        follower = self._follower_of(engine.model)
        engine.supersede(follower)
        if follower is not None:
            self._went_on.add(str(engine.model))

    def _put(self, engines: Iterable[Engine]) -> None:
        # A new list: whoever goes through the old one is not disturbed.
        self.engines = sorted(engines, key=lambda engine: (engine.name, version_order(engine.version)))
        self._by_model = {f"{engine.name}/{engine.version}": engine for engine in self.engines}
        # The newest version that is not to leave comes last, and stays.
        leaders = sorted(self.engines, key=lambda engine: not engine.is_retiring)
        self._by_model.update({engine.name: engine for engine in leaders})
        for tell in self.when_changed:
            tell()

    def _not_served(self, model: str) -> StreamcellError:
        return errors.refusal(Reason.MODEL_NOT_FOUND, model=model, served=", ".join(sorted(self._by_model)))


def version_order(version: str) -> tuple[bool, int, str]:
    """Returns what versions are sorted by: numbers are newer than words, and order as numbers."""
    return (True, int(version), "") if version.isdecimal() else (False, 0, version)
