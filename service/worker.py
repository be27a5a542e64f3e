"""A server in a worker process that a supervisor leads: inside Envoy, or on the grpcio front.

Settings come as environment variables, orders over the control channel. If the supervisor ends, the worker
ends too. Does not know what the server serves.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
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
from service.telemetry import faults, log

_MakeServer = Callable[[Config], "_Server"]


class _Server(Protocol):
    """The server of a worker."""

    front: Any
    listen: Address

    async def start(self) -> None:
        """Gets ready to serve."""

    async def until_listening(self) -> None:
        """Returns when the front takes calls, which may be before `start` returns."""

    def reload(self) -> None:
        """Looks for new versions of the models now."""

    def page(self) -> str:
        """Returns the page for Prometheus."""

    def become_lame_duck(self) -> None:
        """Reports NOT_SERVING from now on, and serves on."""

    async def drain(self) -> bool:
        """Finishes active calls; returns whether all of them finished in time."""

    async def abandon(self) -> None:
        """Ends at once."""


class SupervisedServer:
    """A server that follows a supervisor's orders."""

    def __init__(self, channel: Channel, server: _Server) -> None:
        self._channel = channel
        self.server = server
        self._draining: asyncio.Task[None] | None = None

    @classmethod
    async def create(cls, make_server: _MakeServer) -> "SupervisedServer":
        """Makes the server, or reports the reason to the supervisor and ends the process."""
        log.set_up()
        tuning.keep_freed_memory()
        channel = await Channel.inherited(os.environ)
        async with _reporting_failure(channel):
            server = make_server(config.from_command([], os.environ))
        return cls(channel, server)

    async def start(self) -> None:
        """Starts the server, or reports the reason to the supervisor and ends the process.

        The supervisor's orders are followed meanwhile: the server may have to wait for its store.
        """
        async with _reporting_failure(self._channel):
            await self.server.start()
        self._channel.send(event="started", failed="", listen=list(self.server.listen))

    async def follow_orders(self) -> None:
        """Follows orders until the supervisor is gone."""
        while (message := await self._channel.receive()) is not None:
            if message["order"] == "page":
                self._channel.send(event="page", page=self.server.page())
            elif message["order"] == "reload":
                self.server.reload()
            elif message["order"] == "lame_duck":
                self.server.become_lame_duck()
            elif self._draining is None:
                self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        self._channel.send(event="drain", clean=await self.server.drain())


@contextlib.asynccontextmanager
async def _reporting_failure(channel: Channel) -> AsyncIterator[None]:
    """Reports to the supervisor why the server cannot start, and ends the process."""
    try:
        yield
    except ConfigError as error:
        channel.send(event="started", failed=str(error))
        await channel.close()
        os._exit(2)
    except Exception as exception:
        faults.report(exception)
        await channel.close()
        os._exit(1)


class Application:
    """The ASGI application that pyvoy calls: once for the life of the process, and for every request."""

    def __init__(self, make_server: _MakeServer) -> None:
        self._make_server = make_server
        self._front: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request, or runs the server for the life of the process."""
        if scope["type"] == "lifespan":
            await self._run(receive, send)
        else:
            await self._front(scope, receive, send)

    async def _run(self, receive: Receive, send: Send) -> None:
        await receive()  # "lifespan.startup"
        supervised = await SupervisedServer.create(self._make_server)
        self._front = supervised.server.front
        following = asyncio.create_task(self._follow(supervised))
        starting = asyncio.create_task(supervised.start())
        await supervised.server.until_listening()
        await send({"type": "lifespan.startup.complete"})  # Envoy listens from here on
        await receive()  # "lifespan.shutdown"
        starting.cancel()
        following.cancel()
        await supervised.server.abandon()
        await send({"type": "lifespan.shutdown.complete"})

    @staticmethod
    async def _follow(supervised: SupervisedServer) -> None:
        await supervised.follow_orders()
        os.kill(os.getpid(), signal.SIGTERM)  # ends Envoy, as the supervisor is gone


application = Application(lambda settings: Server(settings, EnvoyFront, has_page=False))


async def _serve() -> None:
    supervised = await SupervisedServer.create(lambda settings: Server(settings, has_page=False))
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, supervised.server.reload)
    following = asyncio.create_task(supervised.follow_orders())
    stopped = asyncio.create_task(stopping.wait())
    starting = asyncio.create_task(supervised.start())
    await asyncio.wait((following, stopped), return_when=asyncio.FIRST_COMPLETED)
    starting.cancel()
    await supervised.server.abandon()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
