"""Runs an action on a session between two of its steps. Does not know which actions there are."""

import asyncio
from collections.abc import Callable

from service import futures
from service.engine.session_ref import SessionRef
from service.engine.work import Control


async def between_steps(session: SessionRef, action: Callable[[int], object]) -> None:
    """Calls an action with a session's slot once the work under way is done, and returns after that.

    The action is not called if the session ends first.

    Raises:
        StreamcellError: OVERLOADED.
    """
    engine = session.engine
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    control = Control(
        session.slot, session.generation, action, arrived_ns=engine.now(), on_done=futures.sets(done)
    )
    engine.submit(control)
    await done
