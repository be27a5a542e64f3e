"""A server in a worker process, whose life a supervisor leads: within Envoy, or on the grpcio front.

The settings come as variables, orders over the control channel. If the supervisor goes, so does the worker.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any, Protocol

import uvloop

from service import config
from service.config import Address, Config
from service.errors import ConfigError
from service.fronts.envoy.application import EnvoyFront
from service.fronts.envoy.asgi import Receive, Scope, Send
from service.processes import tuning
from service.processes.control import Channel
from service.server import Server
from service.telemetry import log

_NewServer = Callable[[Config], "_Server"]


class _Server(Protocol):
    """What a worker serves."""

    front: Any
    listen: Address

    async def start(self) -> None:
        """Is ready to serve."""

    def reload(self) -> None:
        """Looks for new versions of the models now."""

    def page(self) -> str:
        """Returns Prometheus' page."""

    async def drain(self) -> bool:
        """Finishes what is in flight; tells whether all was finished in time."""

    async def abandon(self) -> None:
        """Ends at once."""


class Led:
    """A server, and the supervisor that leads it."""

    def __init__(self, channel: Channel, server: _Server) -> None:
        self._channel = channel
        self.server = server
        self._draining: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, new_server: _NewServer) -> "Led":
        """Starts the server; ends the process if it cannot start, as the supervisor then says why."""
        log.set_up()
        tuning.keep_freed_memory()
        channel = await Channel.inherited(os.environ)
        try:
            server = new_server(config.from_command([], os.environ))
            await server.start()
        except ConfigError as error:
            channel.send(event="started", failed=str(error))
            await channel.close()
            os._exit(2)
        channel.send(event="started", failed="", listen=list(server.listen))
        return cls(channel, server)

    async def obey(self) -> None:
        """Does as it is told, for as long as there is somebody who tells."""
        while (told := await self._channel.receive()) is not None:
            if told["order"] == "page":
                self._channel.send(event="page", page=self.server.page())
            elif told["order"] == "reload":
                self.server.reload()
            elif self._draining is None:
                self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        self._channel.send(event="drain", clean=await self.server.drain())


class Application:
    """What pyvoy calls: once for the life of the process, and for every request."""

    def __init__(self, new_server: _NewServer) -> None:
        self._new_server = new_server
        self._front: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request, or lives."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._front(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()  # "lifespan.startup"
        led = await Led.start(self._new_server)
        self._front = led.server.front
        await send({"type": "lifespan.startup.complete"})
        obeying = asyncio.create_task(self._obey(led))
        await receive()  # "lifespan.shutdown"
        obeying.cancel()
        await led.server.abandon()
        await send({"type": "lifespan.shutdown.complete"})

    @staticmethod
    async def _obey(led: Led) -> None:
        await led.obey()
        os.kill(os.getpid(), signal.SIGTERM)  # Envoy's own


application = Application(lambda settings: Server(settings, EnvoyFront, has_page=False))


async def _serve() -> None:
    led = await Led.start(lambda settings: Server(settings, has_page=False))
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_signal_handler(signal.SIGHUP, led.server.reload)
    obeying = asyncio.create_task(led.obey())
    await asyncio.wait((obeying, asyncio.create_task(ended.wait())), return_when=asyncio.FIRST_COMPLETED)
    await led.server.abandon()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
