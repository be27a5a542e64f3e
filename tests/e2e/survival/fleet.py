"""Servers as processes, each at an address that stays its own: killed, drained and started anew there.

Owns how much a run does, too: little in `make test`, as much as the project promises in `make e2e`.
"""

import asyncio
import contextlib
import os
import pathlib
import signal
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import BOUND_SECONDS, ServerProcess, children, until_gone
from tests.redis_server import free_port

IS_FULL = os.environ.get("STREAMCELL_E2E") == "full"
MODEL = "mackey-glass"
STORES = ("sqlite", "redis")
FRONTS = ("grpcio", "envoy")


def scaled(short, full):
    """Returns what this run takes of two sizes."""
    return full if IS_FULL else short


def every_front(*short):
    """Has a test run on some fronts, in a full run on all."""
    return pytest.mark.parametrize("front", scaled(short, FRONTS))


def every_store_and_front(*short):
    """Has a test run on some pairs of store and front, in a full run on all."""
    full = [(store, front) for store in STORES for front in FRONTS]
    return pytest.mark.parametrize(("store", "front"), scaled(short, full))


class Seat:
    """An address, with the server that serves there now."""

    def __init__(self, *flags):
        self.listen, self.metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self._flags = ["--listen", self.listen, "--metrics-listen", self.metrics, *flags]
        self.server = None

    async def start(self):
        """Starts a server, and returns when it serves."""
        self.server = ServerProcess(*self._flags)
        await asyncio.to_thread(self.server.event, "serving")

    def processes(self):
        """Returns the processes of the server, its own last."""
        return [*children(self.server.process.pid), self.server.process.pid]

    async def kill(self):
        """Ends the server as `kill -9` of all of it would."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        await asyncio.to_thread(self.server.close)
        for process in processes:
            await asyncio.to_thread(until_gone, process)

    async def drain(self):
        """Has the server drain; it ends with status 0, and no process of it is left."""
        processes = self.processes()
        self.server.signal()
        status = await asyncio.to_thread(self.server.wait)
        self.server.close()
        assert status == 0, self.server.lines
        for process in processes:
            until_gone(process)

    def close(self):
        """Ends the server, however it is."""
        if self.server is not None:
            self.server.close()

    async def figure(self, name):
        """Returns a metric as it is now, all its samples together."""
        page = await asyncio.to_thread(self._page)
        families = text_string_to_metric_families(page)
        return sum(s.value for family in families for s in family.samples if s.name == name)

    async def until(self, name, holds):
        """Waits until a metric is as it should be, and returns it; the server is asked again and again."""
        async with asyncio.timeout(BOUND_SECONDS):
            while not holds(value := await self.figure(name)):
                pass
        return value

    def _page(self):
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=BOUND_SECONDS) as response:
            return response.read().decode()

    def resident_bytes(self):
        """Returns the memory of the server's processes."""
        pages = [int(pathlib.Path(f"/proc/{each}/statm").read_text().split()[1]) for each in self.processes()]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")
