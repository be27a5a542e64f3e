"""One server as a process that can freeze, crash and drain: the production parts, put together.

Does not know clients, nor why it is stopped.
"""

import asyncio
import functools

from streamcell.v1 import streamcell_pb2 as pb

from service.catalog.catalog import Catalog
from service.catalog.versions import Versions
from service.engine.engine import Engine
from service.errors import ConfigError
from service.persistence.stored_sessions import StoredSessions
from service.persistence.write_behind import WriteBehind
from service.rpc.methods import Call
from service.rpc.router import Router
from service.servicers.streamcell import servicer as streamcell
from service.telemetry.metrics import Metrics
from tests.fakes.rig import settings
from tests.simulation.database import SimulatedStore
from tests.simulation.loop import Process
from tests.simulation.model import MODEL, VERSION, Runner

_CALLS_SECONDS = 2.0  # that a drain gives to calls under way
_WRITE_SECONDS = 2.0  # that a drain gives to the last write
_LOOK_SECONDS = 0.05  # how often a drain looks whether the calls have ended
_START_SECONDS = 0.5  # between two attempts to start while the store is away
_EXPIRE_SECONDS = 1.0


@functools.cache
def _metrics():
    """Returns instruments that all servers share: making them takes long, and nobody reads them."""
    metrics = Metrics()
    return metrics.of_model(MODEL, VERSION), metrics.of_store()


class Server(Process):
    """A server at a host, from its start to its end."""

    def __init__(self, world, host, number):
        super().__init__(f"{host.name}{number}")
        self.world = world
        self.loop = world.loop
        self.host = host
        self.exchanges = {}
        self.is_dead = False
        self.is_draining = False
        self.began = self.loop.time()
        self.frozen_at = -1e9
        self.thawed_at = -1e9
        config = settings(**world.plan.settings)
        self.store = SimulatedStore(
            self.loop,
            world.database,
            self.name,
            weather=world.weather,
            random=world.seeded(f"store {self.name}"),
            heard=functools.partial(world.oracle.heard, self),
            wall=world.wall,
        )
        of_model, of_store = _metrics()
        engine = Engine(
            Runner(config.max_resident_sessions),
            config,
            of_model,
            loop=self.loop,
            clock=self.loop.time_ns,
        )
        self.engine = engine
        self.catalog = Catalog(Versions([engine]))
        self.write_behind = WriteBehind(
            self.store,
            lambda: self.catalog.versions.engines,
            config,
            of_store,
            count_fault=lambda name: world.oracle.fault(f"the task {name} of {self.name} raised"),
            clock=self.loop.time_ns,
            wall=world.wall,
        )
        self.catalog.persistence = StoredSessions(self.write_behind, self.catalog.versions.engine_of)
        self.catalog.persistence.attach(engine)
        self.router = Router(
            streamcell.StreamcellServicer(self.catalog, config).methods(),
            max_message_bytes=config.max_message_bytes,
            max_stream_messages=config.max_stream_messages,
            count_error=lambda path, error: None,
            count_streams=lambda count: None,
        )
        self._ttl_ns = round(config.session_ttl_seconds * 1e9)

    # -- Its life ------------------------------------------------------------------------------------

    def start(self):
        """Starts in a task of its own, and listens once the store is there."""
        self.loop.create_task(self._start(), context=self.context)

    async def _start(self):
        while True:
            try:
                await self._open_store()
                break
            except ConfigError:
                await asyncio.sleep(_START_SECONDS)
        self.world.note(self.name, "serves")
        self.host.listen(self)
        while self._ttl_ns:
            await asyncio.sleep(_EXPIRE_SECONDS)
            self.engine.expire_idle(self._ttl_ns)

    async def _open_store(self):
        try:
            await self.write_behind.start()
        except Exception as error:
            raise ConfigError(str(error)) from error

    def freeze(self):
        """Stops, as by SIGSTOP; connections stay open, until clients find them silent."""
        self.frozen_at = self.loop.time()
        self.loop.freeze(self)

    def thaw(self):
        """Goes on."""
        if self.is_frozen:
            self.thawed_at = self.loop.time()
        self.loop.thaw(self)

    def crash(self):
        """Ends at once: nothing of it is heard any more, but for what it has sent."""
        self._leave()
        for exchange in list(self.exchanges):
            exchange.fail("connection reset")
        self.exchanges = {}
        for task in self.tasks:
            if not task.done():
                task.cancel()
        self.thaw()

    def drain(self):
        """Finishes, stores and releases everything, and ends."""
        if not (self.is_draining or self.is_dead):
            self.is_draining = True
            self.loop.create_task(self._drain(), context=self.context)

    async def _drain(self):
        self.catalog.is_draining = True
        self.router.drain()
        end = self.loop.time() + _CALLS_SECONDS
        while self.exchanges and self.loop.time() < end:  # noqa: ASYNC110 (virtual time costs nothing)
            await asyncio.sleep(_LOOK_SECONDS)
        for exchange in list(self.exchanges):
            exchange.break_off("connection reset")
        is_written = await self.write_behind.stop(_WRITE_SECONDS)
        self.world.oracle.drained(self, is_written)
        self._leave()

    def _leave(self):
        self.world.oracle.left(self)
        self.is_dead = True
        if self.host.process is self:
            self.host.process = None

    # -- Calls ---------------------------------------------------------------------------------------

    async def answer(self, path, raw):
        """Answers a unary call, in the hearing of the oracle."""
        method = self.router.methods[path]
        visit = self.world.oracle.visit(self, path, raw)
        try:
            reply = await self.router.answer(method, raw, Call(""))
        except Exception as error:
            if not self.is_dead:
                visit.refused(error)
            raise
        if not self.is_dead:
            visit.answered(reply)
        return reply

    def open_stream(self, path):
        """Opens a stream; returns who observes its messages, and the stream."""
        stream = self.router.open(self.router.methods[path], Call(""))
        return StreamObserver(self), stream

    def close_stream(self, stream):
        """Closes a stream."""
        self.router.close(stream)


class StreamObserver:
    """Hears the messages of one stream, and matches requests and responses by their ids."""

    def __init__(self, server):
        self._server = server
        self._visits = {}
        self._bound = []

    def received(self, raw):
        """Hears a request."""
        request = pb.StreamRequest.FromString(raw)
        visit = self._server.world.oracle.visit_stream(self._server, request, self._bound)
        self._visits[request.request_id] = visit

    def sent(self, raw):
        """Hears a response."""
        response = pb.StreamResponse.FromString(raw)
        visit = self._visits.pop(response.request_id, None)
        if visit is None:
            self._server.world.oracle.fault(f"nobody asked for response {response.request_id}")
        elif not self._server.is_dead:
            visit.streamed(response)
