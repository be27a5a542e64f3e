"""All engines of a server: which model a name means, and which engine has a session.

Owns what is server-wide: names, session ids, draining. Does not know protos, nor how sessions are kept.
"""

import dataclasses
import enum
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from service import errors
from service.catalog import migration as moves
from service.catalog.versions import NotLoaded, Versions
from service.engine.engine import Engine
from service.engine.residents import id_of
from service.engine.snapshot import Snapshot
from service.errors import Reason, StreamcellError

_ID = re.compile(r"[!-~]{1,128}")


class Reach(enum.Enum):
    """How far a request for a session goes."""

    OWN = "own"  # this server's and nobody's: a state that another server has may be newer
    INDEXED = "indexed"  # another server's too, as the step's index shows whether the state is old
    OPEN = "open"  # another server's too, and one that was taken away from this server


# Sessions in the store that cannot be brought.
UNUSABLE = (Reason.SNAPSHOT_REJECTED, Reason.MODEL_NOT_FOUND, Reason.MODEL_CHANGED)


class NotResident(StreamcellError):  # noqa: N818 (no failure: it tells to fetch)
    """A session is in the store, or is to be moved first, or its model loaded: `Catalog.fetch` tells."""

    def __init__(self, session_ids: Sequence[str]) -> None:
        found = errors.refusal(Reason.SESSION_NOT_FOUND, session_id=session_ids[0])
        super().__init__(found.reason, found.message, metadata=found.metadata)
        self.session_ids = session_ids


class Keeper(Protocol):
    """What brings sessions from a store and opens them there; see `keeper.Keeper`."""

    def watch(self, engine: Engine) -> None:
        """Begins to keep an engine's sessions."""

    def unwatch(self, engine: Engine) -> None:
        """Ends to keep the sessions of an engine that has none any more."""

    async def fetch(self, key: str, is_resident: Callable[[], bool], *, take_over: bool) -> None:
        """Takes a session in from the store."""

    async def create(self, key: str, engine: Engine, session: Snapshot) -> int:
        """Opens a new session, where another stands, and returns its slot."""

    async def forget(self, key: str) -> None:
        """Removes a session that cannot be taken in."""

    async def stored(self, engine: Engine, slot: int) -> None:
        """Returns when a session is in the store as it is now."""

    async def confirm(self, engine: Engine, slot: int) -> bool:
        """Tells whether a session is this server's still, as far as the store can be asked."""

    async def make_room(self, engine: Engine) -> None:
        """Returns when another session has room in memory."""


class Catalog(Versions):
    """The engines, by model name and version; with a `keeper`, sessions may be in its store."""

    def __init__(self, engines: Iterable[Engine], *, migrates: bool = False) -> None:
        super().__init__(engines, migrates=migrates)
        self.is_draining = False
        self.keeper: Keeper | None = None

    def choose(self, model: str) -> Engine:
        """Returns the engine for "NAME", "NAME/VERSION" or, where one model is served, "".

        Raises:
            NotLoaded: it is on the shelf.
            StreamcellError: MODEL_NOT_FOUND; INVALID_ARGUMENT for "" where several are served.
        """
        engine = self._by_model.get(model)
        if engine is not None:
            return engine
        if model:
            missing = self._not_served(model)
            if self.shelf is not None and self.shelf.has(model):
                raise NotLoaded(missing.reason, missing.message, metadata=missing.metadata)
            raise missing
        names = sorted({engine.name for engine in self.engines})
        if len(names) > 1:
            raise errors.invalid_argument("model", f"several are served, name one of {', '.join(names)}")
        return self._by_model[names[0]]

    # -- Sessions in memory ------------------------------------------------------------------------

    def find(self, principal: str, session_id: str) -> tuple[Engine, int]:
        """Returns the engine and slot of a session in memory.

        Raises:
            NotResident: it may be in the store, or is to be moved to another version.
            StreamcellError: DRAINING; SESSION_NOT_FOUND, SESSION_EXPIRED; INVALID_ARGUMENT for an empty id.
        """
        if self.is_draining:
            raise errors.refusal(Reason.DRAINING)
        key = key_of(principal, session_id)
        found = self._resident(key)
        if found is not None:
            arrived = found if found[0].successor is None else moves.arrive(*found)
            if arrived is None:
                raise NotResident([session_id])
            return arrived
        if self.keeper is not None and session_id:
            raise NotResident([session_id])
        raise self._missing(key, session_id)

    def open(self, principal: str, session_id: str, model: str) -> tuple[Engine, int]:
        """Opens a session where there is no store; an empty id is replaced by a random one.

        Raises:
            StreamcellError: DRAINING; SESSION_EXISTS; INVALID_ARGUMENT; MODEL_NOT_FOUND; SESSIONS_FULL.
        """
        key = self._new_key(principal, session_id)
        engine = self.choose(model)
        return engine, engine.open(key)

    def lend(self, engine: Engine) -> int:
        """Opens a session for one piece of work, with no id and in no store; returns its slot.

        Raises:
            NotResident: there may be room when another has left for the store: `make_room`.
            StreamcellError: DRAINING; SESSIONS_FULL.
        """
        if self.is_draining:
            raise errors.refusal(Reason.DRAINING)
        if self.keeper is not None and not engine.has_free_slot:
            raise NotResident([""])
        return engine.lend()

    # -- Sessions anywhere -------------------------------------------------------------------------

    async def fetch(self, principal: str, session_id: str, reach: Reach = Reach.OWN) -> tuple[Engine, int]:
        """Returns the engine and slot of a session, which comes from the store if need be.

        Raises:
            StreamcellError: as `find`; SESSION_FENCED, it is another server's; what else the keeper raises.
        """
        # One in memory may have been taken over meanwhile: who opens it is to hear where it really stands.
        is_sure = reach is not Reach.OPEN or self.keeper is None
        while True:
            try:
                found = self.find(principal, session_id)
            except NotResident:
                is_sure |= await self._bring(key_of(principal, session_id), session_id, reach)
                continue
            if is_sure or self.keeper is None:
                return found
            is_sure = await self.keeper.confirm(*found)

    async def create(
        self, principal: str, session_id: str, model: str, *, is_durable: bool = False
    ) -> tuple[Engine, int]:
        """Opens a session; an empty id is replaced by a random one.

        Raises:
            StreamcellError: as `open`; STORE_UNAVAILABLE.
        """
        key = self._new_key(principal, session_id)
        await self.load(model)
        if self.keeper is None:
            return self.open(principal, session_id, model)
        engine = self.choose(model)
        session = engine.blank(id_of(key), is_durable=is_durable)
        return engine, await self.keeper.create(key, engine, session)

    async def restore(self, principal: str, session_id: str, session: Snapshot) -> tuple[Engine, int]:
        """Opens a session that stands where a snapshot does; an empty id is replaced by a random one.

        Raises:
            StreamcellError: as `create`, and as `engine_of`.
        """
        engine = await self.engine_of(session.model)
        key = self._new_key(principal, session_id)
        if self.keeper is None:
            slot = engine.open(key)
            engine.install(slot, session)
            return engine, slot
        session = dataclasses.replace(session, session_id=id_of(key), model=engine.model)
        return engine, await self.keeper.create(key, engine, session)

    async def forget(self, principal: str, session_id: str) -> None:
        """Removes a session that is in the store and cannot be used.

        Raises:
            StreamcellError: SESSION_NOT_FOUND; STORE_UNAVAILABLE.
        """
        key = key_of(principal, session_id)
        if self.keeper is None:
            raise self._missing(key, session_id)
        await self.keeper.forget(key)

    async def stored(self, engine: Engine, slot: int) -> None:
        """Returns when a session is in the store as it is now; at once where there is none.

        Raises:
            StreamcellError: STORE_UNAVAILABLE.
        """
        if self.keeper is not None:
            await self.keeper.stored(engine, slot)

    async def make_room(self, engine: Engine) -> None:
        """Returns when another session has room in an engine's memory, if some can leave for the store.

        Raises:
            StreamcellError: SESSIONS_FULL; STORE_UNAVAILABLE.
        """
        if self.keeper is not None:
            await self.keeper.make_room(engine)

    def check_model(self, engine: Engine, session_id: str, model: str) -> None:
        """Checks that a session on `engine` runs on the model a request names, if it names one.

        Raises:
            StreamcellError: MODEL_CHANGED.
        """
        runs_on = f"{engine.name}/{engine.version}"
        if model and model not in (engine.name, runs_on) and not self.goes_on(model, engine):
            raise errors.refusal(Reason.MODEL_CHANGED, session_id=session_id, asked=model, model=runs_on)

    async def _bring(self, key: str, session_id: str, reach: Reach) -> bool:
        """Has a session in memory, and moved if it is to move; tells whether it came from the store."""
        found = self._resident(key)
        if found is not None:
            await moves.rest(*found)
            return False
        if self.keeper is None:
            raise self._missing(key, session_id)
        if reach is not Reach.OPEN and self._end_of(key) is Reason.SESSION_FENCED:
            raise errors.refusal(Reason.SESSION_FENCED, session_id=session_id)
        await self.keeper.fetch(
            key, lambda: self._resident(key) is not None, take_over=reach is not Reach.OWN
        )
        return True

    def _resident(self, key: str) -> tuple[Engine, int] | None:
        for engine in self.engines:
            slot = engine.sessions.find(key)
            if slot is not None:
                return engine, slot
        return None

    def _new_key(self, principal: str, session_id: str) -> str:
        if self.is_draining:
            raise errors.refusal(Reason.DRAINING)
        session_id = session_id or secrets.token_urlsafe(12)
        if not _ID.fullmatch(session_id):
            raise errors.invalid_argument(
                "session_id", "must be 1 to 128 printable ASCII characters, no spaces"
            )
        key = key_of(principal, session_id)
        if self._resident(key) is not None:
            raise errors.refusal(Reason.SESSION_EXISTS, session_id=session_id)
        return key

    def _end_of(self, key: str) -> Reason | None:
        ends = (engine.sessions.end_of(key) for engine in self.engines)
        return next((end for end in ends if end is not None), None)

    def _missing(self, key: str, session_id: str) -> StreamcellError:
        if not session_id:
            return errors.invalid_argument("session_id", "is required")
        if self._end_of(key) is Reason.SESSION_EXPIRED:
            return errors.refusal(Reason.SESSION_EXPIRED, session_id=session_id)
        return errors.refusal(Reason.SESSION_NOT_FOUND, session_id=session_id)


def is_missing(error: StreamcellError) -> bool:
    """Tells whether an error says that there is no such session, for whatever reason."""
    return error.reason in (Reason.SESSION_NOT_FOUND, Reason.SESSION_EXPIRED, Reason.SESSION_EVICTED)


def session_id_of(engine: Engine, slot: int) -> str:
    """Returns the id that a session's principal knows it by."""
    return id_of(engine.sessions.key(slot))


def key_of(principal: str, session_id: str) -> str:
    """Returns what a session is known by here and in the store."""
    # Unambiguous whatever the id holds: a principal has no NUL, so the first one ends it.
    return f"{principal}\0{session_id}"
