"""Compressed messages on the fronts, which have an event loop and wait for their turn.

Does not know how a message comes, nor what inflating costs others: that is `rpc.inflation`'s.
"""

import asyncio
from collections.abc import Callable

from service.config import Config
from service.rpc.inflation import Inflation, Packed
from service.rpc.router import Router
from service.rpc.statuses import RefusedError


def inflation_of(router: Router, settings: Config) -> Inflation:
    """Returns what inflates the messages of all calls of a front."""
    return Inflation(settings.max_message_bytes, router.request_bytes, _call_later)


async def inflated(packed: Packed, inflation: Inflation) -> bytes:
    """Returns what a compressed message inflates to, when its turn has come.

    Raises:
        RefusedError: the message is too large, or does not inflate.
    """
    done: asyncio.Future[bytes | RefusedError] = asyncio.get_running_loop().create_future()
    inflation.inflate(packed, done.set_result)
    try:
        found = await done
    finally:
        packed.is_dropped = True
    if isinstance(found, RefusedError):
        raise found
    return found


def _call_later(seconds: float, callback: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, callback)
