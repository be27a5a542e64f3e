"""A real server in this process, on ports of its own, and ways to talk to it."""

import asyncio
import dataclasses
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc import aio
from grpc_status.rpc_status import from_call
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from service import artifact
from service.artifact import Artifact
from service.config import Address, Config
from service.server import Server, serving

ROOT = pathlib.Path(__file__).parents[2]
ARTIFACTS = ROOT / "model" / "artifacts"
BOUND_SECONDS = 60.0  # for what never takes long: a hang fails here, with a name


@dataclasses.dataclass
class Peer:
    """A server and a channel to it."""

    server: Server
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
    """Returns a stream's next message, or fails."""
    message = await asyncio.wait_for(call.read(), BOUND_SECONDS)
    assert isinstance(message, pb.StreamResponse), "the stream ended"
    return message


async def refusal(awaitable: Awaitable[Any]) -> Refusal:
    """Returns the error that a call ends with."""
    with pytest.raises(aio.AioRpcError) as caught:
        await asyncio.wait_for(awaitable, BOUND_SECONDS)
    return refusal_of(caught.value)


def refusal_of(error: aio.AioRpcError) -> Refusal:
    """Returns an RPC's error with what its details say."""
    info, retry = ErrorInfo(), RetryInfo()
    status = from_call(error)
    for detail in status.details if status else ():
        detail.Unpack(info)
        detail.Unpack(retry)
    seconds = retry.retry_delay.ToNanoseconds() / 1e9
    return Refusal(error.code().name, info.reason, error.details() or "", dict(info.metadata), seconds)


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts servers with settings of the test's; they drain at its end."""
    running = []

    async def start_one(**changes: Any) -> Peer:
        context = serving(settings(**changes))
        server = await context.__aenter__()
        channel = aio.insecure_channel(str(server.listen))
        running.append((context, channel))
        return Peer(server, channel, stubs.StreamcellServiceStub(channel))

    yield start_one
    for context, channel in running:
        await channel.close()
        await context.__aexit__(None, None, None)


@pytest.fixture
async def peer(start: Start) -> Peer:
    """A server with the shipped models."""
    return await start()


@pytest.fixture(scope="session")
def mackey_glass() -> Artifact:
    """The artifact itself, to compute what the server must answer."""
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
