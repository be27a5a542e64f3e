"""How a server ends after the first signal: as a lame duck, then by a drain, or at once by a second signal.

A lame duck reports NOT_SERVING and serves everything. Whoever polls its health sends clients elsewhere before
the first call is refused. Does not know what serves.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Protocol

from service.config import Config
from service.telemetry import log


class Server(Protocol):
    """What ends: a server, or a supervisor with its workers."""

    def become_lame_duck(self) -> None:
        """Reports NOT_SERVING from now on, and serves on."""

    async def drain(self) -> bool:
        """Refuses new work, finishes what is in flight; returns whether all finished in time."""


async def end(
    server: Server,
    settings: Config,
    first: signal.Signals,
    second: "Awaitable[signal.Signals]",
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> bool | None:
    """Ends a server, and returns whether everything finished; None if a second signal came before.

    After a second signal the server is as that signal found it.
    """
    ending = asyncio.ensure_future(_delay_and_drain(server, settings, first, sleep))
    forced = asyncio.ensure_future(second)
    await asyncio.wait((ending, forced), return_when=asyncio.FIRST_COMPLETED)
    if not ending.done():
        ending.cancel()
        return None
    forced.cancel()
    return ending.result()


async def _delay_and_drain(
    server: Server, settings: Config, first: signal.Signals, sleep: Callable[[float], Awaitable[None]]
) -> bool:
    if settings.drain_delay_seconds:
        log.info(
            "lame_duck",
            signal=first.name,
            delay_seconds=settings.drain_delay_seconds,
            effect="NOT_SERVING is reported, and all is served until the drain",
        )
        server.become_lame_duck()
        await sleep(settings.drain_delay_seconds)
    log.info("draining", signal=first.name, timeout_seconds=settings.drain_timeout_seconds)
    return await server.drain()
