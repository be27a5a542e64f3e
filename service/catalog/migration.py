"""Sessions that move to another version of their model, each between two of its steps.

A session moves when it is next asked for; the others move in the background, a bounded number a turn. A
request for a session that has work under way waits until that is done. Does not know which version takes
over.
"""

import asyncio
import itertools

from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.engine.work import AnyWork, Control

_MAX_A_TURN = 256  # sessions moved at once in the background, which takes about as long as a batch


def migrate_if_due(session: SessionRef) -> SessionRef | None:
    """Returns where a session goes on, moved if it is to move; None while it has work under way.

    Where the other version has no room, the session stays.
    """
    engine = session.engine
    if engine.succession.successor is None:
        return session
    if session.is_busy:
        return None
    engine.move([session.slot])
    return session.current


async def migrate_when_idle(session: SessionRef) -> None:
    """Returns when a session's work under way is done and the session has moved, ended, or had no room.

    Raises:
        StreamcellError: OVERLOADED.
    """
    engine = session.engine
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def move(slot: int) -> None:
        engine.move([slot])

    def on_done(_: AnyWork) -> None:
        if not done.done():
            done.set_result(None)

    engine.submit(Control(session.slot, session.generation, move, arrived_ns=engine.now(), on_done=on_done))
    await done


def migrate_some(engine: Engine) -> bool:
    """Moves sessions at rest; returns whether more could be moved at once."""
    at_rest = (slot for slot in engine.sessions.slots() if not engine.is_busy(slot))
    chosen = list(itertools.islice(at_rest, _MAX_A_TURN))
    return engine.move(chosen) == _MAX_A_TURN
