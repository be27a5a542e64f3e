"""A server's life: build, start, serve, drain, stop. Puts the parts together, and does nothing more."""

import asyncio
import gc
import importlib.metadata
import signal
import time
from collections.abc import Callable
from typing import Any, Protocol

import grpc
import torch
from prometheus_client import generate_latest

from service import addresses, errors, settings_report
from service.accounts import AccountLimits, Accounts
from service.background import BackgroundTask
from service.catalog.catalog import Catalog
from service.catalog.folder import Folder
from service.catalog.loader import Loader
from service.catalog.versions import Versions
from service.catalog.watcher import ModelWatcher
from service.config import Address, Config
from service.engine.snapshot_keys import SnapshotKeys
from service.errors import ConfigError, Reason, StreamcellError
from service.fronts.grpcio import GrpcioFront
from service.identity.identity import Identity
from service.persistence.base import Persistence
from service.persistence.memory_only import MemoryOnly
from service.persistence.stored_sessions import StoredSessions
from service.persistence.write_behind import WriteBehind
from service.processes import ending, tuning
from service.rpc.methods import Call, Streaming, Unary
from service.rpc.request_bytes import RequestBytes
from service.rpc.router import Router
from service.servicers.inference import servicer as inference
from service.servicers.standard import channelz, reflection
from service.servicers.standard import health as health_servicer
from service.servicers.streamcell import servicer as streamcell
from service.store.base import Store
from service.store.urls import store_of
from service.telemetry import log
from service.telemetry.metrics import Metrics
from service.telemetry.metrics_page import MetricsPage
from service.tls.credentials import ServerCredentials
from service.tls.files import TlsFiles
from service.watched_files import FileWatch, Watched

_EXPIRE_SECONDS = 1.0  # how often idle sessions are looked for
_WRITE_SHARE = 0.25  # of the time for a drain: reserved for writing the sessions


class Front(Protocol):
    """The part that carries a call's bytes between a network and the router."""

    def use_tls(self, credentials: ServerCredentials) -> None:
        """Shows these certificates to clients that connect from now on; with TLS, called before `start`."""

    async def start(self) -> Address:
        """Begins to serve and returns the address."""

    async def stop(self, grace_seconds: float) -> bool:
        """Gives active calls `grace_seconds`, then cancels them; returns whether all ended by themselves.

        The router refuses new calls meanwhile.
        """


class FrontFactory(Protocol):
    """Makes a front over a router's methods."""

    def __call__(self, router: Router, settings: Config, *, count_fault: Callable[[str], None]) -> Front:
        """Returns the front; `count_fault` is called with the name of a background task that raised."""


class Server:
    """The parts of one server; needs a running loop.

    A step passes the parts from top to bottom: front, router, servicer, catalog, engine, runner. The
    constructor builds them from bottom to top, and gives each part the ones below.

    Args:
        settings: all settings.
        front: makes the part that carries the bytes.
        has_page: whether to listen for Prometheus; a worker does not, as its supervisor shows its page.
    """

    def __init__(
        self,
        settings: Config,
        front: FrontFactory = GrpcioFront,
        *,
        has_page: bool = True,
    ) -> None:
        self._settings = settings
        self._has_page = has_page
        self._metrics = Metrics()
        # What settings name, before the models, so that a wrong one is found at once.
        store = store_of(settings.store)
        self._identity = Identity(settings, self._metrics.count_unauthenticated)
        self._accounts = _accounts(settings)
        self._snapshot_keys = SnapshotKeys(settings.snapshot_key)
        # Runners and engines: one of each for every version of a model.
        torch.set_num_threads(settings.threads)
        folder, loader = Folder(settings.models), self._new_loader()
        folder.look()
        warm_models, rejected = loader.load_all(folder.versions.values())
        engines = [loader.make_engine(each) for each in warm_models]
        # The catalog: sessions in memory and in the store, and versions in memory and on disk.
        versions = Versions(engines, migrates=settings.on_new_version == "migrate")
        self._write_behind = self._new_write_behind(store, versions) if store is not None else None
        self.catalog = Catalog(
            versions,
            _persistence(self._write_behind, versions),
            principal_max_sessions=settings.principal_max_sessions,
        )
        self._models = ModelWatcher(settings, folder, loader, self.catalog, self._metrics)
        versions.on_disk = self._models
        for version, why in rejected.items():
            self._models.reject(version, why)
        self._set_build_info(str(loader.device))
        # Servicers, and the router over their methods.
        self._health = health_servicer.HealthServicer([streamcell.SERVICE, inference.SERVICE])
        self._router = self._new_router()
        # The front.
        self.front = front(self._router, settings, count_fault=self._metrics.count_background_fault)
        self._files = self._new_file_watch()
        self.listen = settings.listen
        self.metrics_listen = settings.metrics_listen
        self._page: MetricsPage | None = None
        self._listening = asyncio.Event()
        self._is_lame_duck = False
        self.catalog.why_not_ready = "the server waits for its store"
        self._expiry = BackgroundTask(
            "expire_sessions", self._expire_idle, self._metrics.count_background_fault
        )

    def _tls_files(self) -> list[TlsFiles]:
        """Returns the files for TLS, if there is TLS, once the front uses what they hold."""
        if not self._settings.tls_cert:
            return []
        files = TlsFiles(self._settings, self.front.use_tls, show_end=self._metrics.of_certificates())
        files.load()
        return [files]

    def _new_loader(self) -> Loader:
        accounts = self._accounts if self._identity.is_needed else None
        return Loader(self._settings, self._metrics, accounts)

    def _new_file_watch(self) -> FileWatch:
        files: list[Watched] = [*self._identity.files, *self._snapshot_keys.files, *self._tls_files()]
        return FileWatch(files, self._settings.reload_seconds, self._metrics.count_background_fault)

    def _new_write_behind(self, store: Store, versions: Versions) -> WriteBehind:
        return WriteBehind(
            store,
            lambda: versions.engines,
            self._settings,
            self._metrics.of_store(),
            count_fault=self._metrics.count_background_fault,
        )

    def _new_router(self) -> Router:
        return Router(
            self._methods(),
            max_message_bytes=self._settings.max_message_bytes,
            max_stream_messages=self._settings.max_stream_messages,
            count_error=self._count_error,
            count_streams=self._metrics.streams.set,
            caller_of=self._caller_of if self._identity.is_needed else None,
            max_active_calls=self._settings.max_active_calls,
            request_bytes=RequestBytes(self._settings.max_arriving_bytes),
        )

    def _caller_of(self, certificate: bytes | None, authorization: bytes | None) -> Call:
        principal = self._identity.principal(certificate, authorization)
        return Call(principal, self._accounts.of(principal))

    def _methods(self) -> list[Unary[Any] | Streaming]:
        """Returns the methods of all services."""
        settings = self._settings
        services = [streamcell.SERVICE, inference.SERVICE, health_servicer.SERVICE]
        methods = [
            *streamcell.StreamcellServicer(self.catalog, settings, self._snapshot_keys).methods(),
            *inference.InferenceServicer(self.catalog, settings, self._metrics).methods(),
            *self._health.methods(),
        ]
        if settings.channelz:
            methods += channelz.methods()
            services.append(channelz.SERVICE)
        if settings.reflection:
            methods += reflection.methods(services)
        return methods

    def _set_build_info(self, device: str) -> None:
        self._metrics.build.info(
            {
                "version": importlib.metadata.version("streamcell"),
                "torch": torch.__version__,
                "grpcio": grpc.__version__,
                "device": device,
            }
        )

    async def start(self) -> None:
        """Begins to serve; `listen` and `metrics_listen` then have the ports in use.

        While the store is away, an only server listens already, and says NOT_SERVING: without a store it
        knows no session and opens none. Workers that share a port listen later: the system would give them
        connections that another worker can serve.

        Raises:
            ConfigError: the server cannot listen on an address, or cannot use the store.
        """
        if self._has_page:
            self._page = MetricsPage(self._settings.metrics_listen, self._metrics.registry)
            self.metrics_listen = self._page.address
        try:
            if self._write_behind is not None:
                is_only = self._settings.workers == 1
                await self._write_behind.start(self._listen if is_only else None)
            await self._listen()
        except ConfigError:
            if self._listening.is_set():
                await self.front.stop(0)
            await self._close()
            raise
        if self._settings.session_ttl_seconds:
            self._expiry.start()
        self._models.start()
        self._files.start()
        if not self._is_lame_duck:
            self.catalog.why_not_ready = ""
            self._health.set_all(is_serving=True)
        # The objects made so far live as long as the server: the collector need not look at them again.
        gc.collect()
        gc.freeze()

    async def until_listening(self) -> None:
        """Returns when the front takes calls, which may be before `start` returns."""
        await self._listening.wait()

    async def _listen(self) -> None:
        if not self._listening.is_set():
            self.listen = await self.front.start()
            self._listening.set()

    def become_lame_duck(self) -> None:
        """Reports NOT_SERVING from now on, and serves on."""
        self._is_lame_duck = True
        self.catalog.why_not_ready = errors.refusal(Reason.DRAINING).message
        self._health.set_all(is_serving=False)

    async def drain(self) -> bool:
        """Refuses new work, finishes what is in flight and ends; returns whether all finished in time."""
        self.become_lame_duck()
        self.catalog.is_draining = True
        self._router.drain()
        await self._models.stop()
        started, seconds = time.monotonic(), self._settings.drain_timeout_seconds
        # Calls that do not end must leave time to write their sessions.
        grace = seconds if self._write_behind is None else seconds * (1 - _WRITE_SHARE)
        is_clean = await self.front.stop(grace)
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
        """Looks for new versions of the models, and for files of settings that changed, now."""
        self._models.look_soon()
        self._files.look_soon()

    def page(self) -> str:
        """Returns the page of metrics for Prometheus."""
        return generate_latest(self._metrics.registry).decode()

    async def _close(self) -> None:
        await self._files.stop()
        await self._expiry.stop()
        if self._page is not None:
            self._page.close()
        gc.unfreeze()  # whoever runs one server after another gets the memory back

    async def _expire_idle(self) -> None:
        """Waits a while, then ends sessions in memory that were idle for too long."""
        await asyncio.sleep(_EXPIRE_SECONDS)
        for engine in self.catalog.versions.engines:
            engine.expire_idle(round(self._settings.session_ttl_seconds * 1e9))

    def _count_error(self, method: str, error: StreamcellError) -> None:
        self._metrics.errors.labels(method, error.code.name, error.reason).inc()


def _accounts(settings: Config) -> Accounts:
    limits = AccountLimits(
        settings.principal_max_streams,
        settings.principal_steps_per_second,
        settings.principal_bytes_per_second,
    )
    return Accounts(limits, asyncio.get_running_loop().call_later)


def _persistence(write_behind: WriteBehind | None, versions: Versions) -> Persistence:
    """Returns where sessions are that are not in memory, with the engines attached."""
    if write_behind is None:
        return MemoryOnly()
    stored_sessions = StoredSessions(write_behind, versions.engine_of)
    for engine in versions.engines:
        stored_sessions.attach(engine)
    return stored_sessions


async def run(settings: Config) -> int:
    """Serves until a signal, and returns the exit status: 0 after a clean drain, 1 otherwise.

    The first SIGTERM or SIGINT drains, after --drain-delay-seconds; a second one ends at once. SIGHUP looks
    for new versions of models, and for files of settings that changed.

    Raises:
        ConfigError: the server cannot start; the message says why.
    """
    tuning.keep_freed_memory()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    # Stage 1: load, listen, be ready. Handlers run in a later turn of the loop, when `server` is set.
    server: Server
    loop.add_signal_handler(signal.SIGHUP, lambda: server.reload())
    server = Server(settings)
    starting, first_signal = asyncio.create_task(server.start()), asyncio.create_task(signals.get())
    await asyncio.wait((starting, first_signal), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
        await server.abandon()
        log.info("stopped", clean=True, why="a signal before it served")
        return 0
    starting.result()
    listen, metrics = map(str, map(addresses.connectable, (server.listen, server.metrics_listen)))
    given = settings_report.not_default(settings)
    log.info("serving", listen=listen, metrics=metrics, front="grpcio", settings=given)
    # Stage 2: serve until the first signal.
    first = await first_signal
    # Stage 3: drain until all is finished, or until a second signal.
    is_clean = await ending.end(server, settings, first, signals.get())
    if is_clean is None:
        await server.abandon()
        log.warning("stopped", clean=False, why="a second signal")
        return 1
    log.info("stopped", clean=is_clean)
    return 0 if is_clean else 1
