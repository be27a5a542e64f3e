"""A real server on free ports, on either front, and clients for it."""

import asyncio
import contextlib
import dataclasses
import itertools
import pathlib
import signal
import threading
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc import aio
from grpc_status.rpc_status import from_call
from prometheus_client.parser import text_string_to_metric_families
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from service.config import Address, Config
from service.processes import ending
from service.processes.supervisor import Supervisor
from service.runtime import artifact
from service.runtime.artifact import Artifact
from service.server import Server

ROOT = pathlib.Path(__file__).parents[2]
ARTIFACTS = ROOT / "model" / "artifacts"
BOUND_SECONDS = 60.0  # for waits that are short unless the server hangs


Sleep = Callable[[float], Awaitable[None]]
Result = TypeVar("Result")


class RunningServer(Protocol):
    """A server that runs."""

    listen: Address
    metrics_listen: str

    async def end(self, settings: Config, sleep: "Sleep") -> bool | None:
        """Ends the server as a signal does; `sleep` is the delay. Returns whether every call finished."""

    async def drain(self) -> bool:
        """Drains the server, which then ends; returns whether every call finished."""

    async def stop(self) -> None:
        """Ends the server, unless it has ended."""


class GrpcioServer:
    """A server on the grpcio front, in this process."""

    async def start(self, settings: Config) -> None:
        """Starts the server."""
        self._server: Server | None = Server(settings)
        await self._server.start()
        self.listen, self.metrics_listen = self._server.listen, str(self._server.metrics_listen)

    async def end(self, settings: Config, sleep: Sleep) -> bool | None:
        """Ends the server as a signal does."""
        assert self._server is not None
        server, self._server = self._server, None
        return await ending.end(server, settings, signal.SIGTERM, asyncio.Future(), sleep=sleep)

    async def drain(self) -> bool:
        """Drains the server."""
        assert self._server is not None
        server, self._server = self._server, None
        return await server.drain()

    async def stop(self) -> None:
        """Ends the server at once, unless it was drained."""
        if self._server is not None:
            await self._server.abandon()


class EnvoyServer:
    """A server on the envoy front, in a process of its own."""

    async def start(self, settings: Config) -> None:
        """Starts the server."""
        self._supervisor = Supervisor(settings)
        await self._supervisor.start()
        self.listen, self.metrics_listen = self._supervisor.listen, str(self._supervisor.metrics_listen)

    async def end(self, settings: Config, sleep: Sleep) -> bool | None:
        """Ends the server as a signal does."""
        return await ending.end(self._supervisor, settings, signal.SIGTERM, asyncio.Future(), sleep=sleep)

    async def drain(self) -> bool:
        """Drains the server."""
        return await self._supervisor.drain()

    async def stop(self) -> None:
        """Ends the process."""
        await self._supervisor.stop()


FRONTS: dict[str, Callable[[], Any]] = {"grpcio": GrpcioServer, "envoy": EnvoyServer}


@dataclasses.dataclass
class Peer:
    """A server and a channel to it."""

    server: RunningServer
    channel: aio.Channel
    stub: Any

    async def open(self, session_id: str = "", model: str = "mackey-glass") -> str:
        """Opens a session and returns its id."""
        response = await self.stub.OpenSession(pb.OpenSessionRequest(session_id=session_id, model=model))
        return response.session.session_id

    async def stream(self, *session_ids: str) -> Any:
        """Returns a stream with sessions bound as 0, 1 ..."""
        call = self.stub.Stream()
        await call.write(pb.StreamRequest(config=pb.StreamConfig(session_ids=session_ids)))
        assert len((await answer(call)).config.sessions) == len(session_ids)
        return call

    async def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Returns the samples of the metrics endpoint, by name and labels."""
        url = f"http://{self.server.metrics_listen}/metrics"

        def read() -> str:
            with urllib.request.urlopen(url, timeout=BOUND_SECONDS) as response:
                return str(response.read().decode())

        families = text_string_to_metric_families(await asyncio.to_thread(read))
        return {
            (s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples
        }

    async def until(self, name: str, holds: Callable[[float], bool], model: str = "mackey-glass") -> None:
        """Waits until a condition on a model's metric holds."""
        async with asyncio.timeout(BOUND_SECONDS):
            while not holds((await self.samples())[name, (("model", model), ("version", "1"))]):
                pass


@dataclasses.dataclass
class Refusal:
    """An error as a client sees it."""

    code: str
    reason: str
    message: str
    metadata: dict[str, str]
    retry_delay_seconds: float = 0.0


Start = Callable[..., Awaitable[Peer]]


def settings(**changes: Any) -> Config:
    """Returns settings for a server on free ports of the loopback."""
    free = {"listen": Address("127.0.0.1", 0), "metrics_listen": Address("127.0.0.1", 0), "models": ARTIFACTS}
    return Config(**{**free, **changes})


async def answer(call: Any) -> pb.StreamResponse:
    """Returns a stream's next message; fails if the stream has ended."""
    message = await asyncio.wait_for(call.read(), BOUND_SECONDS)
    assert isinstance(message, pb.StreamResponse), "the stream ended"
    return message


async def refusal(awaitable: Awaitable[Any]) -> Refusal:
    """Returns the error that a call ends with."""
    with pytest.raises(aio.AioRpcError) as caught:
        await asyncio.wait_for(awaitable, BOUND_SECONDS)
    return refusal_of(caught.value)


def refusal_of(error: aio.AioRpcError) -> Refusal:
    """Returns an RPC's error with the facts of its details."""
    info, retry = ErrorInfo(), RetryInfo()
    status = from_call(error)
    for detail in status.details if status else ():
        detail.Unpack(info)
        detail.Unpack(retry)
    seconds = retry.retry_delay.ToNanoseconds() / 1e9
    return Refusal(error.code().name, info.reason, error.details() or "", dict(info.metadata), seconds)


@pytest.fixture(params=FRONTS)
def front(request: pytest.FixtureRequest) -> str:
    """Each test that uses a server runs on every front."""
    return str(request.param)


@contextlib.asynccontextmanager
async def connected(server: RunningServer) -> AsyncIterator[Peer]:
    """Connects to a server for as long as the block lasts, over a connection of the block's own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with aio.insecure_channel(str(server.listen), options) as channel:
        yield Peer(server, channel, stubs.StreamcellServiceStub(channel))


@pytest.fixture
async def start(front: str) -> AsyncIterator[Start]:
    """Starts servers with the test's settings, and ends them after the test."""
    async with contextlib.AsyncExitStack() as running:

        async def start_one(**changes: Any) -> Peer:
            server = FRONTS[front]()
            await server.start(settings(front=front, **changes))
            running.push_async_callback(server.stop)
            return await running.enter_async_context(connected(server))

        yield start_one


class ServerLoop:
    """A loop in a thread of its own, for servers that several tests share: a test's loop ends with the test.

    For the envoy front alone, whose servers are processes: grpcio has one loop at a time in a process.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Returns what a coroutine returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(BOUND_SECONDS)

    def close(self) -> None:
        """Ends the loop and the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="session")
def server_loop() -> Iterator[ServerLoop]:
    """The loop of all servers that tests share."""
    loop = ServerLoop()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def shared_envoy(server_loop: ServerLoop) -> Iterator[EnvoyServer]:
    """A server on the envoy front for many tests, as its process takes seconds to start."""
    server = EnvoyServer()
    server_loop.run(server.start(settings(front="envoy")))
    yield server
    server_loop.run(server.stop())


@pytest.fixture
async def peer(front: str, start: Start, request: pytest.FixtureRequest) -> AsyncIterator[Peer]:
    """A server with the shipped models, which may have sessions of other tests and has counted their calls.

    The ids of a test's sessions come from `Peer.open` or `unused_id`.
    """
    if front == "envoy":
        async with connected(request.getfixturevalue("shared_envoy")) as shared:
            yield shared
    else:  # it starts in this process, and quickly
        yield await start()


@pytest.fixture
async def own_peer(start: Start) -> Peer:
    """A server with the shipped models for one test alone."""
    return await start()


_numbers = itertools.count()


def unused_id() -> str:
    """Returns the id of a session that no test has used."""
    return f"session-{next(_numbers)}"


@pytest.fixture(scope="session")
def mackey_glass() -> Artifact:
    """The artifact itself, to compute the server's answers."""
    path = ARTIFACTS / "mackey-glass" / "1" / "model.pt"
    return artifact.load("mackey-glass", "1", path, torch.device("cpu"))


def folded(model: Artifact, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns the predictions [T, O] for one session's inputs [T, F], computed alone, step by step."""
    state = torch.zeros(1, model.manifest.state_size)
    ys = []
    with torch.inference_mode():
        for row in torch.from_numpy(x):
            y, state = model.step(row[None], torch.zeros(1, dtype=torch.int64), state)
            ys.append(y[0])
    return torch.stack(ys).numpy()


def inputs(seed: int, num_steps: int) -> npt.NDArray[np.float32]:
    """Returns inputs [T, 1] in the range of the Mackey-Glass series."""
    return np.random.default_rng(seed).uniform(0.3, 1.3, (num_steps, 1)).astype(np.float32)
