"""A worker process as its supervisor sees it, with the test at the other end of the channel."""

import asyncio
import contextlib
import gc
import json
import socket

import pytest

from service.config import Address, Config
from service.errors import ConfigError
from service.processes import worker_process
from service.processes.control import Channel
from service.processes.envoy_log import EnvoyLog
from service.processes.listeners import ServerListener
from service.processes.server_folder import ServerFolder
from service.processes.worker_process import WorkerProcess
from tests.fakes import turn

BOUND_SECONDS = 60.0


class FakeProcess:
    """A process that ends when the test says so."""

    def __init__(self):
        self._ended = asyncio.get_running_loop().create_future()

    @property
    def returncode(self):
        """The status; None while the process runs."""
        return self._ended.result() if self._ended.done() else None

    def end(self, status):
        """Ends the process."""
        self._ended.set_result(status)

    def terminate(self):
        """Ends the process, if it runs."""
        if self._ended.done():
            raise ProcessLookupError
        self.end(0)

    async def wait(self):
        """Waits until the process has ended."""
        return await asyncio.shield(self._ended)


class CountingListener(ServerListener):
    """A listener that counts its flushes."""

    num_flushes = 0

    async def flush(self):
        """Counts the call."""
        self.num_flushes += 1


class UnheardListener(ServerListener):
    """A listener that clients cannot reach."""

    async def wait_until_listening(self, process, address):
        """Fails."""
        raise ConfigError(f"--listen: Envoy cannot listen (status {process.returncode})")


class Rig:
    """A worker, its process, its listener, and the channel's end inside the process."""

    def __init__(self, ours, theirs):
        self.process, self.listener, self.inside = FakeProcess(), CountingListener(), theirs
        self.worker = WorkerProcess(self.process, ours, self.listener)

    async def order(self):
        """Returns the next order that the process gets."""
        return (await asyncio.wait_for(self.inside.receive(), BOUND_SECONDS))["order"]


@pytest.fixture
async def rig():
    """A worker that is starting."""
    ours, theirs = socket.socketpair()
    rig = Rig(await Channel.of(ours), await Channel.of(theirs))
    yield rig
    await rig.worker.stop()
    await rig.inside.close()


class TestReady:
    """The wait until a worker serves."""

    async def test_a_worker_that_serves_reports_its_address(self, rig):
        """The address comes with the message that the server has started."""
        rig.inside.send(event="started", failed="", listen=["127.0.0.1", 5000])
        assert await rig.worker.ready() == Address("127.0.0.1", 5000)

    async def test_a_worker_that_cannot_start_reports_the_reason(self, rig):
        """The reason is the error's message, once the process has ended."""
        rig.inside.send(event="started", failed="--models: nothing there")
        waiting = asyncio.create_task(rig.worker.ready())
        await turn()
        rig.process.end(2)
        with pytest.raises(ConfigError, match="--models: nothing there"):
            await waiting

    async def test_a_process_that_ends_before_it_serves_is_an_error(self, rig):
        """The message has the status."""
        waiting = asyncio.create_task(rig.worker.ready())
        await turn()
        rig.process.end(-11)
        await rig.inside.close()
        with pytest.raises(ConfigError, match=r"the worker ended before it served \(status -11\)"):
            await waiting


class TestEnvoysReason:
    """What Envoy says when it cannot start."""

    @pytest.mark.parametrize("has_started", [True, False])
    async def test_the_reason_is_in_the_error(self, has_started):
        """Whether Envoy ends before the server inside has started, or when it should listen."""
        ours, theirs = socket.socketpair()
        process, lines, inside = FakeProcess(), asyncio.StreamReader(), await Channel.of(theirs)
        log = EnvoyLog(lines, lambda line: None)
        worker = WorkerProcess(process, await Channel.of(ours), UnheardListener(), log)
        if has_started:
            inside.send(event="started", failed="", listen=["127.0.0.1", 80])
        message = "error `no room` initializing config 'secret'"
        lines.feed_data(json.dumps({"event": "envoy", "message": message}).encode())
        lines.feed_eof()
        process.end(1)
        waiting = asyncio.create_task(worker.ready())
        await turn()
        await inside.close()
        with pytest.raises(ConfigError, match=r"^--\w+: .* \(status 1\): no room$"):
            await waiting
        await worker.stop()


class TestOrders:
    """Orders and their replies."""

    async def test_several_callers_share_a_page(self, rig):
        """Two requests at once get the same reply, and a later request a new one."""
        waiting = [asyncio.create_task(rig.worker.page()) for _ in range(2)]
        assert [await rig.order() for _ in waiting] == ["page", "page"]
        rig.inside.send(event="page", page="figures")
        assert await asyncio.gather(*waiting) == ["figures", "figures"]

    @pytest.mark.parametrize("is_clean", [True, False])
    async def test_a_drain_returns_whether_all_calls_finished(self, rig, is_clean):
        """It also waits until the last answers have left."""
        draining = asyncio.create_task(rig.worker.drain())
        assert await rig.order() == "drain"
        rig.inside.send(event="drain", clean=is_clean)
        assert await draining is is_clean
        assert rig.listener.num_flushes == 1

    async def test_a_reload_needs_no_reply(self, rig):
        """The order is sent, and that is all."""
        rig.worker.reload()
        assert await rig.order() == "reload"

    async def test_a_worker_that_is_gone_has_no_page_and_no_clean_drain(self, rig):
        """Pending requests and later requests end."""
        pending = asyncio.create_task(rig.worker.page())
        await rig.order()
        await rig.inside.close()
        assert await pending is None
        assert await rig.worker.page() is None
        assert not await rig.worker.drain()


class TestEnd:
    """The end of a process."""

    async def test_a_worker_may_be_stopped_twice(self, rig):
        """The second call finds the process ended."""
        assert rig.worker.is_alive
        await rig.worker.stop()
        await rig.worker.stop()
        assert not rig.worker.is_alive
        assert await rig.worker.wait() == 0


async def test_a_process_that_cannot_be_started_leaves_no_socket_open(monkeypatch, tmp_path):
    """The error is the system's own; an open socket would be a warning, which fails the test."""

    async def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    folder = ServerFolder(tmp_path)
    with contextlib.suppress(BlockingIOError):
        await worker_process.start(Config(front="grpcio"), folder, worker_process.APPLICATION)
    folder.close()
    gc.collect()
