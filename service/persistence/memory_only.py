"""Sessions that live in memory alone: the meaning of `--store memory:` in one process."""

from collections.abc import Callable

from service import errors
from service.arrays import Int64s
from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.engine.snapshot import Snapshot


class MemoryOnly:
    """Persistence without a store, see `base.Persistence`: what is not in memory does not exist."""

    has_store = False

    def attach(self, engine: Engine) -> None:
        """Changes nothing: there is no store."""

    def detach(self, engine: Engine) -> None:
        """Changes nothing: there is no store."""

    async def fetch(self, key: str, is_resident: Callable[[], bool], *, may_take_over: bool) -> bool:
        """Returns whether the session is in memory: there is no other place."""
        return is_resident()

    async def create(self, key: str, engine: Engine, session: Snapshot) -> SessionRef:
        """Opens a new session in memory."""
        slot = engine.residents.open(key)
        engine.residents.install(slot, session)
        return SessionRef.at(engine, slot)

    def check_durable(self) -> None:
        """Raises INVALID_ARGUMENT: there is no store."""
        raise errors.invalid_argument("durable", "this server has no store; leave it out")

    async def discard(self, key: str) -> bool:
        """Returns False: there is nothing to remove."""
        return False

    async def wait_until_stored(self, session: SessionRef) -> None:
        """Returns at once: there is no store to wait for."""

    async def is_still_owned(self, session: SessionRef) -> bool:
        """Returns True: no other server can own a session."""
        return True

    def must_confirm(self, session: SessionRef) -> bool:
        """Returns False: no other server can own a session."""
        return False

    def slots_to_confirm(self, engine: Engine, slots: Int64s) -> Int64s:
        """Returns no slots: no other server can own a session."""
        return slots[:0]

    async def make_room(self, engine: Engine) -> None:
        """Returns at once: no session can leave, and the next one to open is refused with SESSIONS_FULL."""
