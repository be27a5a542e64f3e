"""Servers as processes, each at an address that stays the same: killed, drained and started again there.

Also says how much a run does: little in `make test`, as much as the project promises in `make e2e`.
"""

import asyncio
import contextlib
import os
import pathlib
import signal
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import BOUND_SECONDS, ServerProcess, children, until_gone, until_stopped
from tests.redis_server import free_port

IS_FULL = os.environ.get("STREAMCELL_E2E") == "full"
MODEL = "mackey-glass"
STORES = ("sqlite", "redis")
FRONTS = ("grpcio", "envoy")


def scaled(short, full):
    """Returns the size for this run, of a short run and a full one."""
    return full if IS_FULL else short


def every_front(*short):
    """Runs a test on some fronts, in a full run on all fronts."""
    return pytest.mark.parametrize("front", scaled(short, FRONTS))


def every_store_and_front(*short):
    """Runs a test on some pairs of store and front, in a full run on all pairs."""
    full = [(store, front) for store in STORES for front in FRONTS]
    return pytest.mark.parametrize(("store", "front"), scaled(short, full))


class Replica:
    """A server that can be killed, drained and started again at the same address."""

    def __init__(self, *flags):
        self.listen, self.metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self._flags = ["--listen", self.listen, "--metrics-listen", self.metrics, *flags]
        self.server = None

    async def start(self):
        """Starts the server, and returns when it serves."""
        self.server = ServerProcess(*self._flags)
        await asyncio.to_thread(self.server.event, "serving")

    def processes(self):
        """Returns the ids of the server's processes, the supervisor last."""
        return [*children(self.server.process.pid), self.server.process.pid]

    async def kill(self):
        """Ends all processes of the server at once, as `kill -9` does."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        await asyncio.to_thread(self.server.close)
        for process in processes:
            await asyncio.to_thread(until_gone, process)

    def freeze(self):
        """Stops all processes of the server, until `thaw`: others cannot tell it from a dead one."""
        self._signal_all(signal.SIGSTOP)
        for process in self.processes():
            until_stopped(process)

    def thaw(self):
        """Makes the processes go on where they stopped."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number):
        for process in self.processes():
            os.kill(process, number)

    async def drain(self):
        """Drains the server; it must end with status 0 and leave no process."""
        processes = self.processes()
        self.server.signal()
        status = await asyncio.to_thread(self.server.wait)
        self.server.close()
        assert status == 0, self.server.lines
        for process in processes:
            until_gone(process)

    def close(self):
        """Ends the server in whatever state it is."""
        if self.server is not None:
            with contextlib.suppress(ProcessLookupError):
                self.thaw()
            self.server.close()

    async def metric(self, name):
        """Returns the sum of a metric's samples."""
        page = await asyncio.to_thread(self._page)
        families = text_string_to_metric_families(page)
        return sum(s.value for family in families for s in family.samples if s.name == name)

    async def until_metric(self, name, holds):
        """Polls a metric until a condition is true, and returns its value."""
        async with asyncio.timeout(BOUND_SECONDS):
            while not holds(value := await self.metric(name)):
                pass
        return value

    def _page(self):
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=BOUND_SECONDS) as response:
            return response.read().decode()

    def resident_bytes(self):
        """Returns the memory of the server's processes."""
        pages = [int(pathlib.Path(f"/proc/{each}/statm").read_text().split()[1]) for each in self.processes()]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")
