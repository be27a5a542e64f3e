"""Sessions on their way to another version of their model: each moves between two of its steps.

A session moves when it is next asked for, the others in the background, a bounded number a turn. What is
asked of one that has work under way waits until that is done. Does not know which version takes over.
"""

import asyncio
import itertools

from service.engine.engine import Engine
from service.engine.work import AnyWork, Control

_MAX_A_TURN = 256  # sessions moved at once in the background, which takes about as long as a batch


def arrive(engine: Engine, slot: int) -> tuple[Engine, int] | None:
    """Returns where a session goes on, moved by then if it is to move; None while it has work under way.

    Where the other version has no room it stays.
    """
    if engine.successor is None:
        return engine, slot
    if engine.is_busy(slot):
        return None
    generation = engine.sessions.generation.item(slot)
    engine.move([slot])
    return engine.whereabouts(slot, generation)[:2]


async def rest(engine: Engine, slot: int) -> None:
    """Returns when the work under way of a session is done; it has moved then, or ended, or had no room.

    Raises:
        StreamcellError: OVERLOADED.
    """
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def move(slot: int) -> None:
        engine.move([slot])

    def told(_: AnyWork) -> None:
        if not done.done():
            done.set_result(None)

    engine.submit(Control(slot, engine.sessions.generation.item(slot), move, engine.now(), told))
    await done


def move_some(engine: Engine) -> bool:
    """Moves sessions at rest; tells whether more could be moved at once."""
    at_rest = (slot for slot in engine.sessions.slots() if not engine.is_busy(slot))
    chosen = list(itertools.islice(at_rest, _MAX_A_TURN))
    return engine.move(chosen) == _MAX_A_TURN
