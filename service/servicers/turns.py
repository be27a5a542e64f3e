"""What unary methods share: a request waits for its caller's turn when callers are rivals.

Streams wait by not being read (`stream_backpressure`). Does not know what a request asks.
"""

import asyncio
from collections.abc import Callable

from service.accounts import NOBODY
from service.engine.engine import Engine


async def in_turn(engine: Engine, account: int, submit: Callable[[], None]) -> None:
    """Calls `submit`, which queues work: at once, or when it is the account's turn. Raises what it raises.

    A caller that is cancelled while it waits has queued nothing.
    """
    if account == NOBODY or engine.has_room(0, account):
        submit()
        return
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take_turn() -> None:
        if done.done():
            return
        try:
            submit()
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    engine.when_room(0, take_turn, account)
    await done
