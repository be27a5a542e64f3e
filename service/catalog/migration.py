"""Moves sessions to another version of their model, each between two of its steps.

A session moves when a request next asks for it. Idle sessions move in the background, a bounded number a
turn. A request for a session that has work under way waits until that work is done. Does not know which
version takes over.
"""

import itertools

from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.persistence.between_steps import between_steps

_MAX_A_TURN = 256  # sessions that move at once in the background: that takes about as long as a batch


def migrate_if_due(session: SessionRef) -> SessionRef | None:
    """Moves a session if it is due to move, and returns where it is then; None while it has work under way.

    If the other version has no room, the session stays.
    """
    engine = session.engine
    if engine.succession.successor is None:
        return session
    if session.is_busy:
        return None
    engine.move([session.slot])
    return session.current


async def migrate_when_idle(session: SessionRef) -> None:
    """Returns when a session's work under way is done, and the session has moved, ended, or found no room.

    Raises:
        StreamcellError: OVERLOADED.
    """
    engine = session.engine
    await between_steps(session, lambda slot: engine.move([slot]))


def migrate_some(engine: Engine) -> bool:
    """Moves up to 256 idle sessions; returns whether so many moved, so that there may be more."""
    idle = (slot for slot in engine.sessions.slots() if not engine.is_busy(slot))
    chosen = list(itertools.islice(idle, _MAX_A_TURN))
    return engine.move(chosen) == _MAX_A_TURN
