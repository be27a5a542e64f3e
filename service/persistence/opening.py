"""The opening of the store at a server's start: at once, or after a wait for a store that is away.

Does not know which store it is, nor what the server does while it waits.
"""

import asyncio
from collections.abc import Awaitable, Callable

from service.errors import ConfigError
from service.persistence.availability import Availability
from service.store.base import StoreError
from service.telemetry import log

_RETRY_SECONDS = 0.5


async def until_open(
    open_store: Callable[[], Awaitable[None]],
    availability: Availability,
    *,
    max_wait_seconds: float,
    on_wait: Callable[[], Awaitable[None]] | None,
    clock: Callable[[], int],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Opens the store. One that is away is tried again and again; meanwhile it counts as away.

    Args:
        open_store: opens the store; may be called again after a StoreError.
        availability: records how the store is.
        max_wait_seconds: how long to wait for a store that is away; 0: not at all.
        on_wait: awaited once, before the wait begins.
        clock: monotonic nanoseconds.
        sleep: waits a number of seconds.

    Raises:
        ConfigError: the store is wrong for good, or was away for too long.
    """
    deadline_ns = clock() + round(max_wait_seconds * 1e9)
    is_waiting = False
    while True:
        try:
            await open_store()
            break
        except StoreError as error:
            if clock() >= deadline_ns:
                raise ConfigError(f"--store: {error}") from error
            availability.record_absence(error)
            if not is_waiting:
                is_waiting = True
                effect = "NOT_SERVING until the store can be used"
                log.warning("waiting_for_store", why=str(error), max_seconds=max_wait_seconds, effect=effect)
                await (on_wait or _do_nothing)()
        await sleep(_RETRY_SECONDS)
    if is_waiting:
        log.info("store_there")
    availability.record_success()


async def _do_nothing() -> None:
    pass
