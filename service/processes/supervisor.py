"""The life of worker processes: start, ready, drain, stop, and a new worker for one that ended.

Owns the port that the workers share and the page of metrics that is made of theirs. Does not serve calls
itself, and stays light: only the workers import torch.
"""

import asyncio
import dataclasses
import signal

from prometheus_client import Counter, Gauge, ProcessCollector
from prometheus_client.registry import CollectorRegistry

from service import addresses, settings_report
from service.addresses import HeldPort
from service.background import BackgroundTask
from service.config import Config
from service.errors import ConfigError
from service.processes import ending, worker_process
from service.processes.refused_connections import RefusedConnections
from service.processes.replacement import Replacement
from service.processes.server_folder import ServerFolder
from service.processes.worker_pages import WorkerPages
from service.processes.worker_process import APPLICATION, WorkerProcess
from service.telemetry import log
from service.telemetry.metrics_page import MetricsPage


class Supervisor:
    """The workers of one server; needs a running event loop.

    Args:
        application: the ASGI application `module:name` that the envoy front serves.
    """

    def __init__(self, settings: Config, application: str = APPLICATION) -> None:
        self._folder = ServerFolder()
        if settings.workers > 1 and settings.store == "memory:":
            # Workers find each other's sessions in a store. This store ends with the supervisor.
            settings = dataclasses.replace(settings, store=f"sqlite:{self._folder.path}/sessions.db")
        self._settings = settings
        self._application = application
        self._port: HeldPort | None = None
        self._workers: dict[int, WorkerProcess] = {}
        self._page: MetricsPage | None = None
        self._replacing: list[BackgroundTask] = []
        self._watching: asyncio.Task[None] | None = None
        refused = RefusedConnections(self._workers, has_tls=bool(settings.tls_cert))
        self._looking = BackgroundTask("refused_connections", refused.look, self._count_fault)
        self._is_lame_duck = False
        self._registry = CollectorRegistry()
        loop = asyncio.get_running_loop()
        self.is_single = settings.workers == 1
        self._pages = WorkerPages(self._workers, is_single=self.is_single, loop=loop)
        self.ended: asyncio.Future[str] = loop.create_future()
        """Done when the only worker ended by itself, with the reason."""
        self.listen = settings.listen
        self.metrics_listen = settings.metrics_listen

    async def start(self) -> None:
        """Starts every worker and waits until all serve.

        Raises:
            ConfigError: a worker cannot start, or an address cannot be listened on.
        """
        try:
            await self._hold_port()
            self._page = MetricsPage(self._settings.metrics_listen, self._registry)
            self.metrics_listen = self._page.address
            self._registry.register(self._pages)
            numbers = range(self._settings.workers)
            started = await asyncio.gather(*map(self._start, numbers), return_exceptions=True)
            for each in started:
                if isinstance(each, BaseException):
                    raise each
        except BaseException:
            await self.stop()
            raise
        if self._settings.front == "envoy":
            self._looking.start()
        if self.is_single:
            # The end of the only worker is the end of the server, so nothing replaces it.
            self._watching = asyncio.create_task(self._watch_only_worker())
        else:
            self._replace_workers()

    async def _hold_port(self) -> None:
        """Keeps the port for several workers, or for several hosts."""
        is_shared = self._settings.shares_port
        self._port = await addresses.hold(self._settings.listen, "--listen", is_shared=is_shared)
        self.listen = self._port.address
        self._settings = dataclasses.replace(self._settings, listen=self.listen)

    async def _start(self, number: int) -> None:
        worker = await worker_process.start(self._settings, self._folder, self._application)
        self._workers[number] = worker
        if self._is_lame_duck:
            worker.become_lame_duck()
        try:
            self.listen = await worker.ready()
        except ConfigError:
            await worker.stop()  # a worker that does not serve in time has not ended by itself
            raise

    async def _watch_only_worker(self) -> None:
        (worker,) = self._workers.values()
        self.ended.set_result(f"{worker.name} ended by itself, with status {await worker.wait()}")

    def _replace_workers(self) -> None:
        """Begins to replace workers that end, and shows figures of the supervisor's own."""
        restarts = Counter(
            "streamcell_worker_restarts", "Workers that died and were replaced.", registry=self._registry
        )
        alive = Gauge("streamcell_workers", "Workers that live.", registry=self._registry)
        alive.set_function(lambda: sum(each.is_alive for each in self._workers.values()))
        ProcessCollector(namespace="streamcell_supervisor", registry=self._registry)
        for number in self._workers:
            replacement = Replacement(number, self._workers, self._start, count_restart=restarts.inc)
            task = BackgroundTask("worker_replacement", replacement.replace, self._pages.count_fault)
            task.start()
            self._replacing.append(task)

    def reload(self) -> None:
        """Orders all workers to look for new versions of the models now."""
        for worker in self._workers.values():
            worker.reload()

    def become_lame_duck(self) -> None:
        """Orders all workers, and those that replace them, to report NOT_SERVING and to serve on."""
        self._is_lame_duck = True
        for worker in self._workers.values():
            worker.become_lame_duck()

    async def drain(self) -> bool:
        """Orders all workers to finish their active calls; returns whether all of them finished."""
        await self._stop_watching()
        return all(await asyncio.gather(*(each.drain() for each in self._workers.values())))

    async def stop(self) -> None:
        """Ends every worker, closes the page and the port. May be called twice."""
        await self._stop_watching()
        await asyncio.gather(*(each.stop() for each in self._workers.values()))
        if self._page is not None:
            await asyncio.to_thread(self._page.close)  # an active scrape may wait for this loop
            self._page = None
        if self._port is not None:
            self._port.close()
        self._folder.close()

    def _count_fault(self, task: str) -> None:
        self._pages.count_fault(task)

    async def _stop_watching(self) -> None:
        await self._looking.stop()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))
        await asyncio.gather(*(each.stop() for each in self._replacing))


async def run(settings: Config) -> int:
    """Serves until a signal, and returns the exit status: 0 after a clean drain, otherwise 1.

    The first SIGTERM or SIGINT drains, after --drain-delay-seconds; a second signal ends at once. SIGHUP
    looks for new versions of models, and for files of settings that changed.
    If the only worker ends by itself, the supervisor ends too.

    Raises:
        ConfigError: the server cannot start; the message says why.
    """
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    supervisor = Supervisor(settings)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
    first_signal = asyncio.create_task(signals.get())
    # Stage 1: get ready, unless a signal comes before.
    starting = asyncio.create_task(supervisor.start())
    await asyncio.wait((starting, first_signal), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
        log.info("stopped", clean=True, why="a signal before it served")
        return 0
    starting.result()
    try:
        return await _serve(supervisor, settings, first_signal, signals)
    finally:
        await supervisor.stop()


async def _serve(
    supervisor: Supervisor,
    settings: Config,
    first_signal: "asyncio.Task[signal.Signals]",
    signals: "asyncio.Queue[signal.Signals]",
) -> int:
    listen, metrics = map(str, map(addresses.connectable, (supervisor.listen, supervisor.metrics_listen)))
    given = settings_report.not_default(settings)
    workers = settings.workers
    log.info("serving", listen=listen, metrics=metrics, front=settings.front, workers=workers, settings=given)
    # Stage 2: serve, until a signal.
    await asyncio.wait((first_signal, supervisor.ended), return_when=asyncio.FIRST_COMPLETED)
    if not first_signal.done():
        log.warning("stopped", clean=False, why=supervisor.ended.result())
        return 1
    # Stage 3: drain, unless a second signal comes.
    is_clean = await ending.end(supervisor, settings, first_signal.result(), signals.get())
    if is_clean is None:
        log.warning("stopped", clean=False, why="a second signal")
        return 1
    await supervisor.stop()
    log.info("stopped", clean=is_clean)
    return 0 if is_clean else 1
