"""What the catalog needs of sessions that may live longer than memory; with and without a store."""

from collections.abc import Callable
from typing import Protocol

from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.engine.snapshot import Snapshot


class Persistence(Protocol):
    """Where sessions are that are not in memory, and how they come and go."""

    has_store: bool
    """Whether a session that is not in memory may be in a store."""

    def attach(self, engine: Engine) -> None:
        """Begins to store an engine's sessions."""

    def detach(self, engine: Engine) -> None:
        """Ends with an engine that has no sessions any more."""

    async def fetch(self, key: str, is_resident: Callable[[], bool], *, may_take_over: bool) -> None:
        """Brings a session from the store into memory, unless it is there by then.

        Args:
            key: the session's.
            is_resident: says whether the session is in memory.
            may_take_over: whether a session that another server owns comes too.

        Raises:
            StreamcellError: SESSION_NOT_FOUND, SESSION_EXPIRED; SESSION_FENCED, another server owns it;
                SNAPSHOT_REJECTED; STORE_UNAVAILABLE; SESSIONS_FULL; MODEL_NOT_FOUND, MODEL_CHANGED.
        """

    async def create(self, key: str, engine: Engine, session: Snapshot) -> SessionRef:
        """Opens a new session, in memory and in the store, that stands where `session` does.

        Raises:
            StreamcellError: SESSION_EXISTS; STORE_UNAVAILABLE; SESSIONS_FULL.
        """

    async def discard(self, key: str) -> None:
        """Removes a session from the store that cannot be brought into memory.

        Raises:
            StreamcellError: SESSION_NOT_FOUND, SESSION_EXPIRED; STORE_UNAVAILABLE.
        """

    async def wait_until_stored(self, session: SessionRef) -> None:
        """Returns when the store has a session as it is now; at once where there is no store.

        Raises:
            StreamcellError: STORE_UNAVAILABLE; or the session has ended meanwhile.
        """

    async def is_still_owned(self, session: SessionRef) -> bool:
        """Returns whether this server still owns a session, as far as the store can be asked."""

    async def make_room(self, engine: Engine) -> None:
        """Returns when another session has room in an engine's memory, if some can leave for the store.

        Raises:
            StreamcellError: SESSIONS_FULL; STORE_UNAVAILABLE.
        """
