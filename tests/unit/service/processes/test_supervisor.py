"""A supervisor over workers that are no processes: failed starts, and faults on the page."""

import asyncio
import functools
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.background import BackgroundTask
from service.config import Address, Config
from service.errors import ConfigError
from service.processes import replacement, supervisor, worker_process
from service.processes.supervisor import Supervisor

BOUND_SECONDS = 60.0
FREE = Address("127.0.0.1", 0)


class FakeWorker:
    """A worker that runs until it is stopped."""

    name = "the worker"

    def __init__(self, failure=None):
        self.ended = asyncio.get_running_loop().create_future()
        self._failure = failure

    @property
    def is_alive(self):
        """Whether the worker runs."""
        return not self.ended.done()

    async def ready(self):
        """Returns an address, or fails."""
        if self._failure is not None:
            raise self._failure
        return FREE

    async def page(self):
        """Returns an empty page."""
        return ""

    async def wait(self):
        """Waits for the end."""
        return await asyncio.shield(self.ended)

    async def stop(self):
        """Ends the worker."""
        if self.is_alive:
            self.ended.set_result(0)


class Starts:
    """The starts of workers: each takes the next outcome, an exception or a worker."""

    def __init__(self, monkeypatch, *outcomes):
        self.outcomes, self.done = list(outcomes), asyncio.Event()
        monkeypatch.setattr(worker_process, "start", self._start)

    async def _start(self, settings, folder, application):
        outcome = self.outcomes.pop(0)
        if not self.outcomes:
            self.done.set()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def settings(num_workers):
    """Returns settings for workers on free ports."""
    return Config(front="grpcio", workers=num_workers, listen=FREE, metrics_listen=FREE)


async def samples(address, name):
    """Returns a metric's samples on the page, as labels -> value."""

    def read():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=BOUND_SECONDS) as response:
            return response.read().decode()

    families = text_string_to_metric_families(await asyncio.to_thread(read))
    found = [sample for family in families for sample in family.samples if sample.name == name]
    return {tuple(sorted(sample.labels.items())): sample.value for sample in found}


async def test_a_worker_that_does_not_serve_is_ended(monkeypatch):
    """The error is the worker's, and no process is left behind."""
    worker = FakeWorker(ConfigError("--listen: Envoy does not listen"))
    Starts(monkeypatch, worker)
    with pytest.raises(ConfigError, match="Envoy does not listen"):
        await Supervisor(settings(1)).start()
    assert not worker.is_alive


async def test_the_end_of_the_only_worker_is_the_end_of_the_server(monkeypatch):
    """The reason has the worker's status."""
    worker = FakeWorker()
    Starts(monkeypatch, worker)
    supervised = Supervisor(settings(1))
    await supervised.start()
    worker.ended.set_result(-9)
    async with asyncio.timeout(BOUND_SECONDS):
        assert await supervised.ended == "the worker ended by itself, with status -9"
    await supervised.stop()


async def test_a_start_that_the_system_refuses_is_a_fault_on_the_page_and_repeated(monkeypatch):
    """The replacing of a worker outlives the fault, and the page counts it beside the workers' faults."""
    monkeypatch.setattr(supervisor, "BackgroundTask", functools.partial(BackgroundTask, pause_seconds=0))
    monkeypatch.setattr(replacement, "_FIRST_PAUSE_SECONDS", 0)
    first, second, third = FakeWorker(), FakeWorker(), FakeWorker()
    starts = Starts(monkeypatch, first, second, BlockingIOError(11, "no process"), third)
    supervised = Supervisor(settings(2))
    await supervised.start()
    first.ended.set_result(-9)
    async with asyncio.timeout(BOUND_SECONDS):
        await starts.done.wait()
    page = supervised.metrics_listen
    labels = (("task", "worker_replacement"), ("worker", "supervisor"))
    assert await samples(page, "streamcell_background_faults_total") == {labels: 1}
    assert await samples(page, "streamcell_worker_restarts_total") == {(): 1}
    assert await samples(page, "streamcell_workers") == {(): 2}
    await supervised.stop()
    assert not third.is_alive
