"""Sessions that live in memory alone: what `--store memory:` means, in one process."""

from collections.abc import Callable

from service import errors
from service.engine import session_key
from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.engine.snapshot import Snapshot
from service.errors import Reason


class MemoryOnly:
    """Persistence without a store, as `base.Persistence` describes it: what is not in memory is nowhere."""

    has_store = False

    def attach(self, engine: Engine) -> None:
        """Changes nothing: an engine stores nothing by itself."""

    def detach(self, engine: Engine) -> None:
        """Changes nothing."""

    async def fetch(self, key: str, is_resident: Callable[[], bool], *, may_take_over: bool) -> None:
        """Raises SESSION_NOT_FOUND, unless the session is in memory."""
        if not is_resident():
            raise errors.refusal(Reason.SESSION_NOT_FOUND, session_id=session_key.id_of(key))

    async def create(self, key: str, engine: Engine, session: Snapshot) -> SessionRef:
        """Opens a new session in memory."""
        slot = engine.residents.open(key)
        engine.residents.install(slot, session)
        return SessionRef.at(engine, slot)

    async def discard(self, key: str) -> None:
        """Raises SESSION_NOT_FOUND: there is nothing to remove."""
        raise errors.refusal(Reason.SESSION_NOT_FOUND, session_id=session_key.id_of(key))

    async def wait_until_stored(self, session: SessionRef) -> None:
        """Returns at once: memory is all there is."""

    async def is_still_owned(self, session: SessionRef) -> bool:
        """Returns True: nobody else can own a session."""
        return True

    async def make_room(self, engine: Engine) -> None:
        """Returns at once: no session can leave, and whoever opens the next one is told SESSIONS_FULL."""
