"""All sessions of a server: finds them by principal and id, opens them, and checks the model of a request.

Owns session ids and the state of draining. Does not know protos, nor how sessions are stored.
"""

import dataclasses
import enum
import secrets
from collections.abc import Sequence

from service import errors
from service.accounts import NOBODY, RETRY_SECONDS, number_of
from service.catalog import migration
from service.catalog.versions import Versions
from service.engine.engine import Engine
from service.engine.session_key import ID_RULE, id_of, is_session_id, key_of
from service.engine.session_ref import SessionRef
from service.engine.snapshot import Snapshot
from service.errors import Reason, StreamcellError
from service.persistence.base import Persistence
from service.persistence.memory_only import MemoryOnly


class TakeOver(enum.Enum):
    """Whether a request takes over a session that another server owns."""

    NEVER = "never"  # the other server's state may be newer than the row, unless that server is dead
    IF_INDEXED = "if indexed"  # the request's step index shows whether the row is old
    ALWAYS = "always"  # even a session that another server took over from this one


# Why a session in the store cannot be fetched into memory.
UNUSABLE = (Reason.SNAPSHOT_REJECTED, Reason.MODEL_NOT_FOUND, Reason.MODEL_CHANGED)


class NotResident(StreamcellError):  # noqa: N818 (no failure: the session can be fetched)
    """A session may be in the store, or another server's, must move first, or lacks its model.

    `Catalog.fetch` sees to that.
    """

    def __init__(self, session_ids: Sequence[str]) -> None:
        found = errors.refusal(Reason.SESSION_NOT_FOUND, session_id=session_ids[0])
        super().__init__(found.reason, found.message, metadata=found.metadata)
        self.session_ids = session_ids


class Catalog:
    """The sessions of all models, in memory and in the store.

    Args:
        versions: the models, with their sessions in memory.
        persistence: the sessions outside memory; None: there are none.
        principal_max_sessions: the most sessions in memory that one principal may open; 0: no limit.
    """

    def __init__(
        self, versions: Versions, persistence: Persistence | None = None, *, principal_max_sessions: int = 0
    ) -> None:
        self.versions = versions
        self.persistence = MemoryOnly() if persistence is None else persistence
        self._principal_max_sessions = principal_max_sessions
        self.is_draining = False
        self.why_not_ready = ""
        """Why the server wants no new clients although it serves; empty if it wants them."""

    # -- Sessions in memory ------------------------------------------------------------------------

    def find(self, principal: str, session_id: str) -> SessionRef:
        """Returns a session in memory.

        Raises:
            NotResident: the session may be in the store, is to move to another version or server first, or
                was idle for so long that another server may have taken it over.
            StreamcellError: DRAINING; SESSION_NOT_FOUND, SESSION_EXPIRED; INVALID_ARGUMENT for an empty id.
        """
        if self.is_draining:
            raise errors.refusal(Reason.DRAINING)
        key = key_of(principal, session_id)
        found = self._resident(key)
        if found is not None:
            current = migration.migrate_if_due(found)
            if current is None or self.persistence.must_confirm(current):
                raise NotResident([session_id])
            return current
        if self.persistence.has_store and session_id:
            raise NotResident([session_id])
        raise self._missing(key, session_id)

    def open(self, principal: str, session_id: str, model: str) -> SessionRef:
        """Opens a session in memory alone; a random id takes the place of an empty one.

        Raises:
            StreamcellError: DRAINING; SESSION_EXISTS; INVALID_ARGUMENT; MODEL_NOT_FOUND; SESSIONS_FULL.
        """
        key = self._new_key(principal, session_id)
        engine = self.versions.choose(model)
        return SessionRef.at(engine, engine.residents.open(key))

    def open_ephemeral(self, engine: Engine, account: int = NOBODY) -> SessionRef:
        """Opens a session for one piece of work of an account, with no id and in no store.

        Raises:
            NotResident: there may be room once another session is evicted: `persistence.make_room`.
            StreamcellError: DRAINING; SESSIONS_FULL.
        """
        if self.is_draining:
            raise errors.refusal(Reason.DRAINING)
        if self.persistence.has_store and not engine.residents.has_free_slot:
            raise NotResident([""])
        return SessionRef.at(engine, engine.residents.open_ephemeral(account))

    # -- Sessions anywhere -------------------------------------------------------------------------

    async def fetch(
        self, principal: str, session_id: str, take_over: TakeOver = TakeOver.NEVER
    ) -> SessionRef:
        """Returns a session, fetched from the store if it is not in memory.

        Raises:
            StreamcellError: as `find`; SESSION_FENCED, another server owns the session; as
                `Persistence.fetch`.
        """
        # Another server may have taken over a session in memory: a client that opens the session must get its
        # newest state.
        is_sure = take_over is not TakeOver.ALWAYS
        while True:
            try:
                found = self.find(principal, session_id)
            except NotResident:
                is_sure |= await self._fetch(key_of(principal, session_id), session_id, take_over)
                continue
            if is_sure:
                return found
            is_sure = await self.persistence.is_still_owned(found)

    async def create(
        self, principal: str, session_id: str, model: str, *, is_durable: bool = False
    ) -> SessionRef:
        """Opens a session, in the store if there is one; a random id takes the place of an empty one.

        Raises:
            StreamcellError: as `open`; STORE_UNAVAILABLE.
        """
        key = self._new_key(principal, session_id)
        await self.versions.load(model)
        engine = self.versions.choose(model)
        session = engine.residents.blank(id_of(key), is_durable=is_durable)
        return await self.persistence.create(key, engine, session)

    async def restore(self, principal: str, session_id: str, session: Snapshot) -> SessionRef:
        """Opens a session with the state of a snapshot; a random id takes the place of an empty one.

        Raises:
            StreamcellError: as `create`, and as `Versions.engine_of`.
        """
        engine = await self.versions.engine_of(session.model)
        key = self._new_key(principal, session_id)
        session = dataclasses.replace(session, session_id=id_of(key), model=engine.model)
        return await self.persistence.create(key, engine, session)

    async def discard(self, principal: str, session_id: str) -> None:
        """Removes a session from the store that cannot be fetched into memory.

        Raises:
            StreamcellError: SESSION_NOT_FOUND, SESSION_EXPIRED; STORE_UNAVAILABLE.
        """
        key = key_of(principal, session_id)
        if not await self.persistence.discard(key):
            raise self._missing(key, session_id)

    def check_model(self, engine: Engine, session_id: str, model: str) -> None:
        """Checks that a session on `engine` runs on the model that a request names, if it names one.

        Raises:
            StreamcellError: MODEL_CHANGED.
        """
        if model in ("", engine.name):  # nearly always
            return
        runs_on = str(engine.model)
        if model != runs_on and not self.versions.has_taken_over(engine, model):
            raise errors.refusal(Reason.MODEL_CHANGED, session_id=session_id, asked=model, model=runs_on)

    async def _fetch(self, key: str, session_id: str, take_over: TakeOver) -> bool:
        """Fetches a session into memory, or moves or confirms a resident one.

        Returns:
            Whether the store has just said that the session is this server's.
        """
        found = self._resident(key)
        if found is not None:
            if self.persistence.must_confirm(found):
                return await self.persistence.is_still_owned(found)
            await migration.migrate_when_idle(found)
            return False
        if take_over is not TakeOver.ALWAYS and self._ending(key) is Reason.SESSION_FENCED:
            raise errors.refusal(Reason.SESSION_FENCED, session_id=session_id)
        is_found = await self.persistence.fetch(
            key,
            lambda: self._resident(key) is not None,
            may_take_over=take_over is not TakeOver.NEVER,
        )
        if not is_found:
            raise self._missing(key, session_id)
        return True

    def _resident(self, key: str) -> SessionRef | None:
        return SessionRef.find(self.versions.engines, key)

    def _new_key(self, principal: str, session_id: str) -> str:
        if self.is_draining:
            raise errors.refusal(Reason.DRAINING)
        session_id = session_id or secrets.token_urlsafe(12)
        if not is_session_id(session_id):
            raise errors.invalid_argument("session_id", ID_RULE)
        key = key_of(principal, session_id)
        if self._resident(key) is not None:
            raise errors.refusal(Reason.SESSION_EXISTS, session_id=session_id)
        if self._principal_max_sessions:
            self._check_quota(principal)
        return key

    def _check_quota(self, principal: str) -> None:
        most, account = self._principal_max_sessions, number_of(principal)
        if sum(engine.sessions.num_of(account) for engine in self.versions.engines) >= most:
            raise errors.refusal(
                Reason.QUOTA_EXCEEDED,
                limit="sessions",
                problem=f"{most} sessions are in memory, as many as one principal may open",
                retry_delay_seconds=RETRY_SECONDS,
            )

    def _ending(self, key: str) -> Reason | None:
        ends = (engine.sessions.endings.of(key) for engine in self.versions.engines)
        return next((end for end in ends if end is not None), None)

    def _missing(self, key: str, session_id: str) -> StreamcellError:
        if not session_id:
            return errors.invalid_argument("session_id", "is required")
        if self._ending(key) is Reason.SESSION_EXPIRED:
            return errors.refusal(Reason.SESSION_EXPIRED, session_id=session_id)
        return errors.refusal(Reason.SESSION_NOT_FOUND, session_id=session_id)


def is_missing(error: StreamcellError) -> bool:
    """Returns whether an error says that there is no session of an id, expired or not."""
    return error.reason in (Reason.SESSION_NOT_FOUND, Reason.SESSION_EXPIRED)
