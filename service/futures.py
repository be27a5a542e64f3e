"""Futures that a callback sets, for a caller who may have gone. Does not know what is waited for."""

import asyncio
from collections.abc import Callable


def sets(done: "asyncio.Future[None]") -> Callable[[object], None]:
    """Returns a callback that sets a future once, unless its waiter was cancelled.

    An exception that the callback is called with becomes the future's; anything else sets it to None.
    """

    def set_once(outcome: object) -> None:
        if done.done():
            return
        if isinstance(outcome, Exception):
            done.set_exception(outcome)
        else:
            done.set_result(None)

    return set_once
