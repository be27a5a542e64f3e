"""What the catalog needs of sessions that may outlive memory, with and without a store."""

from collections.abc import Callable
from typing import Protocol

from service.arrays import Int64s
from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.engine.snapshot import Snapshot


class Persistence(Protocol):
    """The sessions outside memory: how they come, how they go, and what the store has of each."""

    has_store: bool
    """Whether a session that is not in memory may be in a store."""

    def attach(self, engine: Engine) -> None:
        """Begins to store an engine's sessions."""

    def detach(self, engine: Engine) -> None:
        """Stops storing the sessions of an engine; there are none any more."""

    async def fetch(self, key: str, is_resident: Callable[[], bool], *, may_take_over: bool) -> bool:
        """Fetches a session from the store into memory; returns False if there is no such session.

        Another server that owns the session is asked for it.

        Args:
            key: the session's key.
            is_resident: returns whether the session is in memory: an earlier caller may have fetched it.
            may_take_over: whether to take the session over if its owner lives and does not answer.

        Raises:
            StreamcellError: SESSION_FENCED, its owner lives and does not answer; SNAPSHOT_REJECTED;
                STORE_UNAVAILABLE; SESSIONS_FULL; MODEL_NOT_FOUND, MODEL_CHANGED; DURABLE_UNSUPPORTED.
        """

    async def create(self, key: str, engine: Engine, session: Snapshot) -> SessionRef:
        """Opens a new session, in memory and in the store, that stands where `session` does.

        Raises:
            StreamcellError: SESSION_EXISTS; STORE_UNAVAILABLE; SESSIONS_FULL; DURABLE_UNSUPPORTED.
        """

    def check_durable(self) -> None:
        """Checks that a durable session can be had.

        Raises:
            StreamcellError: INVALID_ARGUMENT, there is no store; DURABLE_UNSUPPORTED.
        """

    async def discard(self, key: str) -> bool:
        """Removes a session from the store that cannot be fetched; returns False if there is none.

        Raises:
            StreamcellError: STORE_UNAVAILABLE.
        """

    async def wait_until_stored(self, session: SessionRef) -> None:
        """Returns when the store has a session as it is now; at once where there is no store.

        Raises:
            StreamcellError: STORE_UNAVAILABLE; the session's end, if it has ended since.
        """

    async def is_still_owned(self, session: SessionRef) -> bool:
        """Returns whether this server still owns a session; True where the store cannot be asked.

        Waits for a session that is on its way to another server.
        """

    def must_confirm(self, session: SessionRef) -> bool:
        """Returns whether a session is leaving, or was idle for so long that another server may have it.

        `is_still_owned` finds out. False where the store cannot be asked.
        """

    def slots_to_confirm(self, engine: Engine, slots: Int64s) -> Int64s:
        """Returns the slots among `slots` of sessions for which `must_confirm` is true."""

    async def make_room(self, engine: Engine) -> None:
        """Returns when another session has room in an engine's memory; evicts others if it must.

        Raises:
            StreamcellError: SESSIONS_FULL; STORE_UNAVAILABLE.
        """
