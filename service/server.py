"""A server's life: build, start, ready, serve, drain, stop. Puts the parts together; does nothing else."""

import asyncio
import contextlib
import gc
import importlib.metadata
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import grpc
import torch
from prometheus_client import generate_latest

from service.background import BackgroundTask
from service.catalog.catalog import Catalog
from service.catalog.folder import Folder
from service.catalog.loader import Loader
from service.catalog.versions import Versions
from service.catalog.watcher import ModelWatcher
from service.config import Address, Config
from service.errors import ConfigError, StreamcellError
from service.fronts.grpcio import GrpcioFront
from service.persistence.stored_sessions import StoredSessions
from service.persistence.write_behind import WriteBehind
from service.processes import tuning as process
from service.rpc.router import Router, Streaming, Unary
from service.servicers.inference import servicer as inference
from service.servicers.standard import channelz, reflection
from service.servicers.standard import health as health_servicer
from service.servicers.streamcell import servicer as streamcell
from service.store.base import Store
from service.store.urls import store_of
from service.telemetry import log
from service.telemetry.metrics import Metrics
from service.telemetry.metrics_page import MetricsPage

_SWEEP_SECONDS = 1.0
_WRITE_SHARE = 0.25  # of the time for a drain: kept for the sessions to be written


class Front(Protocol):
    """What carries the bytes."""

    async def start(self) -> Address:
        """Begins to serve and returns where."""

    async def stop(self, grace_seconds: float) -> None:
        """Gives calls under way `grace_seconds`, then cancels them; the router refuses new ones meanwhile."""


class Server:
    """The parts of one server, in the order in which they start; needs a running loop.

    Args:
        front: what carries the bytes.
        has_page: whether it listens for Prometheus; a worker's page is its supervisor's to show.
    """

    def __init__(
        self,
        settings: Config,
        front: "Callable[[Router, Config], Front]" = GrpcioFront,
        *,
        has_page: bool = True,
    ) -> None:
        self._settings = settings
        self._has_page = has_page
        self._metrics = Metrics()
        store = store_of(settings.store)
        torch.set_num_threads(settings.threads)
        folder, loader = Folder(settings.models), Loader(settings, self._metrics)
        folder.look()
        warm_models, rejected = loader.load_all(folder.versions.values())
        engines = [loader.make_engine(each) for each in warm_models]
        self.catalog = Catalog(Versions(engines, migrates=settings.on_new_version == "migrate"))
        self._write_behind = self._store_in(store) if store is not None else None
        self._models = ModelWatcher(settings, folder, loader, self.catalog, self._metrics)
        self.catalog.versions.on_disk = self._models
        for version, why in rejected.items():
            self._models.reject(version, why)
        self._show_build(str(loader.device))
        services = [streamcell.SERVICE, inference.SERVICE]
        self._health = health_servicer.HealthServicer(services)
        methods = [
            *streamcell.StreamcellServicer(self.catalog, settings).methods(),
            *inference.InferenceServicer(self.catalog, settings, self._metrics).methods(),
            *self._health.methods(),
            *_tools(settings, [*services, health_servicer.SERVICE]),
        ]
        self._router = Router(
            methods,
            settings.max_message_bytes,
            settings.max_stream_messages,
            self._count_error,
            self._metrics.streams.set,
        )
        self.front = front(self._router, settings)
        self._page: MetricsPage | None = None
        self._sweeper = BackgroundTask("expire_sessions", self._sweep, self._metrics.count_background_fault)
        self.listen = settings.listen
        self.metrics_listen = settings.metrics_listen

    def _store_in(self, store: Store) -> WriteBehind:
        """Stores all sessions from now on."""
        versions = self.catalog.versions
        write_behind = WriteBehind(
            store,
            lambda: versions.engines,
            self._settings,
            self._metrics.of_store(),
            count_fault=self._metrics.count_background_fault,
        )
        self.catalog.persistence = StoredSessions(write_behind, versions.engine_of)
        for engine in versions.engines:
            self.catalog.persistence.attach(engine)
        return write_behind

    def _show_build(self, device: str) -> None:
        self._metrics.build.info(
            {
                "version": importlib.metadata.version("streamcell"),
                "torch": torch.__version__,
                "grpcio": grpc.__version__,
                "device": device,
            }
        )

    async def start(self) -> None:
        """Begins to serve; `listen` and `metrics_listen` then hold the ports in use.

        Raises:
            ConfigError: an address cannot be listened on.
        """
        if self._has_page:
            self._page = MetricsPage(self._settings.metrics_listen, self._metrics.registry)
            self.metrics_listen = self._page.address
        try:
            if self._write_behind is not None:
                await self._write_behind.start()
            self.listen = await self.front.start()
        except ConfigError:
            await self._close()
            raise
        if self._settings.session_ttl_seconds:
            self._sweeper.start()
        self._models.start()
        self._health.set_all(is_serving=True)
        # What start-up made lives on: the collector need not look at it again.
        gc.collect()
        gc.freeze()

    async def drain(self) -> bool:
        """Refuses new work, finishes what is in flight and ends; tells whether all was finished in time."""
        self._health.set_all(is_serving=False)
        self.catalog.is_draining = True
        self._router.drain()
        await self._models.stop()
        started, seconds = time.monotonic(), self._settings.drain_timeout_seconds
        # Calls that do not end must leave time to write their sessions.
        grace = seconds if self._write_behind is None else seconds * (1 - _WRITE_SHARE)
        # stop returns when all calls have ended by themselves, or cancels them when the time is over.
        await self.front.stop(grace)
        is_clean = time.monotonic() - started < grace
        if self._write_behind is not None:
            is_clean &= await self._write_behind.stop(started + seconds - time.monotonic())
        await self._close()
        return is_clean

    async def abandon(self) -> None:
        """Ends at once; what is in flight is cancelled."""
        self._router.drain()
        await self._models.stop()
        await self.front.stop(0)
        if self._write_behind is not None:
            await self._write_behind.abandon()
        await self._close()

    def reload(self) -> None:
        """Looks for new versions of the models now."""
        self._models.look_soon()

    def page(self) -> str:
        """Returns Prometheus' page."""
        return generate_latest(self._metrics.registry).decode()

    async def _close(self) -> None:
        await self._sweeper.stop()
        if self._page is not None:
            self._page.close()

    async def _sweep(self) -> None:
        """Ends idle sessions, once in a while."""
        await asyncio.sleep(_SWEEP_SECONDS)
        for engine in self.catalog.versions.engines:
            engine.expire_idle(round(self._settings.session_ttl_seconds * 1e9))

    def _count_error(self, method: str, error: StreamcellError) -> None:
        self._metrics.errors.labels(method, error.code.name, error.reason).inc()


def _tools(settings: Config, services: list[str]) -> list[Unary[Any] | Streaming]:
    """Returns the methods for those who look into a server; reflection tells of channelz too."""
    methods: list[Unary[Any] | Streaming] = []
    if settings.channelz:
        methods += channelz.methods()
        services = [*services, channelz.SERVICE]
    if settings.reflection:
        methods += reflection.methods(services)
    return methods


@contextlib.asynccontextmanager
async def serving(settings: Config) -> AsyncIterator[Server]:
    """Serves for as long as the block lasts, then drains."""
    server = Server(settings)
    await server.start()
    try:
        yield server
    finally:
        await server.drain()


async def run(settings: Config) -> int:
    """Serves until a signal, and returns the exit status: 0 after a clean drain, else 1.

    The first SIGTERM or SIGINT drains, a second one ends at once. SIGHUP looks for new versions of models.

    Raises:
        ConfigError: the server cannot start; the message says why.
    """
    process.keep_freed_memory()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    server: Server
    loop.add_signal_handler(signal.SIGHUP, lambda: server.reload())  # in a later turn, when there is one
    # Stage 1: load, listen, be ready.
    server = Server(settings)
    await server.start()
    log.info("serving", listen=str(server.listen), metrics=str(server.metrics_listen), front="grpcio")
    # Stage 2: serve, until told to stop.
    first = await signals.get()
    log.info("draining", signal=first.name, timeout_seconds=settings.drain_timeout_seconds)
    # Stage 3: drain, unless told again.
    draining = asyncio.create_task(server.drain())
    forced = asyncio.create_task(signals.get())
    await asyncio.wait((draining, forced), return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        draining.cancel()
        await server.abandon()
        log.warning("stopped", clean=False, why="a second signal")
        return 1
    forced.cancel()
    is_clean = draining.result()
    log.info("stopped", clean=is_clean)
    return 0 if is_clean else 1
