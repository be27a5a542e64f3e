"""A server within Envoy: the ASGI application that pyvoy runs, whose life a supervisor leads.

The settings come as variables, orders over the control channel. If the supervisor goes, so does the worker.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any, Protocol

from service import config, log, process
from service.config import Config
from service.control import Channel
from service.errors import ConfigError
from service.fronts.carried import Receive, Send
from service.fronts.envoy import EnvoyFront, Scope
from service.server import Server


class Application:
    """What pyvoy calls: once for the life of the process, and for every request."""

    def __init__(self, server: "Callable[[Config], _Server]") -> None:
        self._new_server = server
        self._front: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request, or lives."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._front(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        log.set_up()
        process.keep_freed_memory()
        await receive()  # "lifespan.startup"
        channel = await Channel.inherited(os.environ)
        try:
            server = await self._started(config.from_command([], os.environ))
        except ConfigError as error:
            channel.send(event="failed", why=str(error))
            await channel.close()
            os._exit(2)  # the supervisor says why; Envoy would add that it cannot go on
        channel.send(event="ready", metrics=str(server.metrics_listen))
        await send({"type": "lifespan.startup.complete"})
        orders = asyncio.create_task(_obey(channel, server))
        await receive()  # "lifespan.shutdown"
        orders.cancel()
        await server.abandon()
        await send({"type": "lifespan.shutdown.complete"})

    async def _started(self, settings: Config) -> "_Server":
        server = self._new_server(settings)
        await server.start()
        self._front = server.front
        return server


class _Server(Protocol):
    """A server whose front is an ASGI application."""

    front: Any
    metrics_listen: Any

    async def start(self) -> None:
        """Is ready to serve."""

    async def drain(self) -> bool:
        """Finishes what is in flight; tells whether all was finished in time."""

    async def abandon(self) -> None:
        """Ends at once."""


async def _obey(channel: Channel, server: _Server) -> None:
    while await channel.receive() is not None:  # there is one order: to drain
        channel.send(event="drained", clean=await server.drain())
    os.kill(os.getpid(), signal.SIGTERM)


application = Application(lambda settings: Server(settings, EnvoyFront))
