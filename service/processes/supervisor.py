"""Leads the lives of worker processes: start, ready, drain, stop, and a new one for one that died.

Owns the port that they share and the page of metrics that is made of theirs. Serves nothing itself, and
stays light: torch is in the workers alone.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import pathlib
import signal
import socket
import tempfile
import time
from collections.abc import Iterable

from prometheus_client import Counter, Gauge, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from service.config import Address, Config
from service.errors import ConfigError
from service.processes import worker_process
from service.processes.worker_process import APPLICATION, Worker
from service.telemetry import log
from service.telemetry.metrics_page import MetricsPage, joined

_PAGE_SECONDS = 5.0  # how long workers may take for their pages
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0
_STEADY_SECONDS = 60.0  # a worker that lived so long is started anew without a pause


class Supervisor:
    """The workers of one server."""

    def __init__(self, settings: Config, application: str = APPLICATION) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="streamcell-")
        if settings.workers > 1 and settings.store == "memory:":
            # Workers find each other's sessions in a store; this one ends with the supervisor.
            settings = dataclasses.replace(settings, store=f"sqlite:{self._folder.name}/sessions.db")
        self._settings = settings
        self._application = application
        self._port: socket.socket | None = None
        self._workers: dict[int, Worker] = {}
        self._page: MetricsPage | None = None
        self._tending: list[asyncio.Task[None]] = []
        self._registry = CollectorRegistry()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when the only worker ended by itself, with why."""
        self.is_single = settings.workers == 1
        self.listen = settings.listen
        self.metrics_listen = settings.metrics_listen

    async def start(self) -> None:
        """Starts every worker and waits until all serve.

        Raises:
            ConfigError: one cannot start, or an address cannot be listened on.
        """
        try:
            self._share_port()
            pages = _Pages(self, asyncio.get_running_loop())
            self._page = MetricsPage(self._settings.metrics_listen, self._registry)
            self.metrics_listen = self._page.address
            numbers = range(self._settings.workers)
            started = await asyncio.gather(*map(self._start, numbers), return_exceptions=True)
            for each in started:
                if isinstance(each, BaseException):
                    raise each
        except BaseException:
            await self.stop()
            raise
        self._registry.register(pages)
        restarts = self._count()
        self._tending = [asyncio.create_task(self._tend(number, restarts)) for number in numbers]

    def _share_port(self) -> None:
        """Holds the port for workers that share it, without listening."""
        _check_free(self._settings.listen)
        if self.is_single:
            return
        host, port = self._settings.listen
        self._port = socket.socket(_family(host))
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._port.bind((host, port))
        self.listen = Address(host, self._port.getsockname()[1])
        self._settings = dataclasses.replace(self._settings, listen=self.listen)

    def _count(self) -> Counter:
        """Registers what is the supervisor's own, where there are several workers; returns the restarts."""
        registry = None if self.is_single else self._registry
        restarts = Counter(
            "streamcell_worker_restarts", "Workers that died and were replaced.", registry=registry
        )
        alive = Gauge("streamcell_workers", "Workers that live.", registry=registry)
        alive.set_function(lambda: sum(each.process.returncode is None for each in self._workers.values()))
        ProcessCollector(namespace="streamcell_supervisor", registry=registry)
        return restarts

    async def _start(self, number: int) -> None:
        worker = await worker_process.start(
            self._settings, pathlib.Path(self._folder.name), self._application
        )
        self._workers[number] = worker
        self.listen = await worker.ready()

    async def _tend(self, number: int, restarts: Counter) -> None:
        """Replaces a worker whenever it dies; the only one is not replaced, as its end is the server's."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            started, worker = time.monotonic(), self._workers[number]
            why = f"{worker.name} ended by itself, with status {await worker.process.wait()}"
            if self.is_single:
                self.ended.set_result(why)
                return
            log.warning("worker_ended", worker=number, why=why)
            await worker.stop()
            restarts.inc()
            pause = _FIRST_PAUSE_SECONDS if time.monotonic() - started > _STEADY_SECONDS else pause
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            try:
                await self._start(number)
                log.info("worker_restarted", worker=number)
            except ConfigError as error:
                log.warning("worker_not_restarted", worker=number, why=str(error), retry_seconds=pause)

    async def pages(self) -> dict[str, str]:
        """Returns the page of each worker that lives and answers in time, by number."""
        asked = {number: asyncio.create_task(each.page()) for number, each in self._workers.items()}
        if asked:
            await asyncio.wait(asked.values(), timeout=_PAGE_SECONDS)
        found = {}
        for number, task in sorted(asked.items()):
            if task.done() and (page := task.result()) is not None:
                found[str(number)] = page
            task.cancel()
        return found

    def reload(self) -> None:
        """Has all workers look for new versions of the models now."""
        for worker in self._workers.values():
            worker.reload()

    async def drain(self) -> bool:
        """Has all workers finish what is in flight; tells whether all was."""
        await self._stop_tending()
        return all(await asyncio.gather(*(each.drain() for each in self._workers.values())))

    async def stop(self) -> None:
        """Ends all that runs."""
        await self._stop_tending()
        await asyncio.gather(*(each.stop() for each in self._workers.values()))
        if self._page is not None:
            await asyncio.to_thread(self._page.close)  # a scrape under way may wait for this loop
            self._page = None
        if self._port is not None:
            self._port.close()
        self._folder.cleanup()

    async def _stop_tending(self) -> None:
        for task in self._tending:
            task.cancel()
        await asyncio.gather(*self._tending, return_exceptions=True)


class _Pages(Collector):
    """The workers' pages; of the only one as it is."""

    def __init__(self, supervisor: Supervisor, loop: asyncio.AbstractEventLoop) -> None:
        self._supervisor = supervisor
        self._loop = loop

    def collect(self) -> Iterable[Metric]:
        """Yields their families; called on the page's thread."""
        asked = asyncio.run_coroutine_threadsafe(self._supervisor.pages(), self._loop)
        pages: dict[str, str] = {}
        with contextlib.suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            pages = asked.result(2 * _PAGE_SECONDS)
        if self._supervisor.is_single:
            return [family for page in pages.values() for family in text_string_to_metric_families(page)]
        return joined(pages)

    def describe(self) -> Iterable[Metric]:
        """Returns nothing: the workers' registries have checked the names."""
        return []


async def run(settings: Config) -> int:
    """Serves until a signal, and returns the exit status: 0 after a clean drain, else 1.

    The first SIGTERM or SIGINT drains, a second one ends at once. SIGHUP looks for new versions of models. If
    the only worker ends by itself, so does this.

    Raises:
        ConfigError: the server cannot start; the message says why.
    """
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    supervisor = Supervisor(settings)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
    told = asyncio.create_task(signals.get())
    # Stage 1: ready, unless told to stop before.
    starting = asyncio.create_task(supervisor.start())
    await asyncio.wait((starting, told), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
        log.info("stopped", clean=True, why="a signal before it served")
        return 0
    starting.result()
    try:
        return await _lead(supervisor, settings, told, signals)
    finally:
        await supervisor.stop()


async def _lead(
    supervisor: Supervisor,
    settings: Config,
    told: "asyncio.Task[signal.Signals]",
    signals: "asyncio.Queue[signal.Signals]",
) -> int:
    listen, metrics = str(supervisor.listen), str(supervisor.metrics_listen)
    log.info("serving", listen=listen, metrics=metrics, front=settings.front, workers=settings.workers)
    # Stage 2: serve, until told to stop.
    await asyncio.wait((told, supervisor.ended), return_when=asyncio.FIRST_COMPLETED)
    if not told.done():
        log.warning("stopped", clean=False, why=supervisor.ended.result())
        return 1
    log.info("draining", signal=told.result().name, timeout_seconds=settings.drain_timeout_seconds)
    # Stage 3: drain, unless told again.
    drained, again = asyncio.create_task(supervisor.drain()), asyncio.create_task(signals.get())
    await asyncio.wait((drained, again), return_when=asyncio.FIRST_COMPLETED)
    if not drained.done():
        log.warning("stopped", clean=False, why="a second signal")
        return 1
    is_clean = drained.result()
    await supervisor.stop()
    log.info("stopped", clean=is_clean)
    return 0 if is_clean else 1


def _check_free(address: Address) -> None:
    """Sees to it that a port that is taken is said alike whatever the front and the number of workers."""
    if not address.port:
        return
    with socket.socket(_family(address.host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError:
            raise ConfigError(
                f"--listen: cannot listen on {address}: is it taken, or another machine's?"
            ) from None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
