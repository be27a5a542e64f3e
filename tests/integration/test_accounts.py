"""What one principal may use, on both fronts: sessions, streams, steps and bytes a second, its own list."""

import asyncio
import time

import grpc
import pytest
from grpc import aio
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from service.identity.tokens import issue
from tests.integration.conftest import BOUND_SECONDS, answer, refusal

MODEL = "mackey-glass"


class Callers:
    """Two principals and a channel to one server."""

    def __init__(self, folder):
        made = {name: issue(name, float("inf")) for name in ("alice", "bob")}
        (folder / "tokens").write_text("\n".join(record.line() for _, record in made.values()))
        self.settings = {"tokens": str(folder / "tokens")}
        self.alice, self.bob = ([("authorization", f"Bearer {token}")] for token, _ in made.values())

    async def start(self, start, **limits):
        """Starts a server with limits, and returns a stub for it."""
        self.peer = await start(**self.settings, **limits)
        return self.peer.stub

    async def open(self, metadata, session_id):
        """Opens a session."""
        request = pb.OpenSessionRequest(session_id=session_id, model=MODEL)
        await self.peer.stub.OpenSession(request, metadata=metadata)


@pytest.fixture
def callers(tmp_path):
    """Alice and Bob."""
    return Callers(tmp_path)


async def test_sessions_are_bounded_and_listed_for_each_principal(start, callers):
    """The third of Alice's is refused; ListModels counts only one's own."""
    stub = await callers.start(start, principal_max_sessions=2)
    for name in ("a", "b"):
        await callers.open(callers.alice, name)
    await callers.open(callers.bob, "a")
    request = pb.OpenSessionRequest(session_id="c", model=MODEL)
    found = await refusal(stub.OpenSession(request, metadata=callers.alice))
    assert (found.code, found.reason, found.metadata) == (
        "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", {"limit": "sessions"},
    )  # fmt: skip
    assert found.retry_delay_seconds == 1.0
    counts = {}
    for name, metadata in (("alice", callers.alice), ("bob", callers.bob)):
        models = (await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)).models
        counts[name] = {model.name: model.num_sessions for model in models}
    assert counts == {
        "alice": {MODEL: 2, "nyc-taxi": 0},
        "bob": {MODEL: 1, "nyc-taxi": 0},
    }


async def test_streams_are_bounded_for_each_principal(start, callers):
    """One too many ends at once with the limit; Bob has his own."""
    stub = await callers.start(start, principal_max_streams=1)
    await callers.open(callers.alice, "a")
    step = pb.StreamRequest(step=pb.StepRequest(session_id="a", x=[0.5]))
    first = stub.Stream(metadata=callers.alice)
    await first.write(step)
    assert (await answer(first)).step.step_index == 0
    second = stub.Stream(metadata=callers.alice)
    assert await asyncio.wait_for(second.code(), BOUND_SECONDS) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "limit of streams" in await second.details()
    other = stub.Stream(metadata=callers.bob)
    await other.write(step)
    assert (await answer(other)).error.reason == "SESSION_NOT_FOUND"
    await first.write(step)
    assert (await answer(first)).step.step_index == 1
    first.cancel()


async def test_unary_steps_beyond_the_rate_are_refused_with_when_to_come_again(start, callers):
    """Whoever comes again then is served; the other principal never notices."""
    stub = await callers.start(start, principal_steps_per_second=5.0)
    for metadata in (callers.alice, callers.bob):
        await callers.open(metadata, "a")
    prime = pb.PrimeRequest(session_id="a", x=[0.5] * 10)
    await stub.Prime(prime, metadata=callers.alice)
    step = pb.StepRequest(session_id="a", x=[0.5])
    found = await refusal(stub.Step(step, metadata=callers.alice))
    assert (found.code, found.reason, found.metadata) == (
        "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", {"limit": "steps_per_second"},
    )  # fmt: skip
    assert 0 < found.retry_delay_seconds <= 1.5
    assert (await stub.Step(step, metadata=callers.bob)).step_index == 0
    await asyncio.sleep(found.retry_delay_seconds)
    assert (await stub.Step(step, metadata=callers.alice)).step_index == 10


@pytest.mark.parametrize(
    "limits", [{"principal_steps_per_second": 40.0}, {"principal_bytes_per_second": 500.0}]
)
async def test_a_stream_beyond_the_rate_is_slowed_down_and_loses_nothing(start, callers, limits):
    """Every step is answered, in order, and no sooner than the rate allows."""
    stub = await callers.start(start, **limits)
    await callers.open(callers.alice, "a")
    started = time.monotonic()
    call = stub.Stream(metadata=callers.alice)
    request = pb.StreamRequest(step=pb.StepRequest(session_id="a", x=[0.5]))
    num_steps = 80  # far more than the second of steps or bytes that is in reserve
    for _ in range(num_steps):
        await call.write(request)
    await call.done_writing()
    indexes = [(await answer(call)).step.step_index for _ in range(num_steps)]
    assert indexes == list(range(num_steps))
    units = num_steps * (len(request.SerializeToString()) if "principal_bytes_per_second" in limits else 1)
    (rate,) = limits.values()
    # A second's worth is in reserve, and a last message may be owed; loads only make it slower.
    assert time.monotonic() - started >= units / rate - 1.1
    assert await asyncio.wait_for(call.code(), BOUND_SECONDS) is grpc.StatusCode.OK


async def test_two_channels_of_one_principal_share_its_limits(start, callers):
    """The account is the principal's, not the connection's."""
    await callers.start(start, principal_max_streams=1)
    await callers.open(callers.alice, "a")
    step = pb.StreamRequest(step=pb.StepRequest(session_id="a", x=[0.5]))
    first = callers.peer.stub.Stream(metadata=callers.alice)
    await first.write(step)
    await answer(first)
    async with aio.insecure_channel(str(callers.peer.server.listen)) as channel:
        second = stubs.StreamcellServiceStub(channel).Stream(metadata=callers.alice)
        code = await asyncio.wait_for(second.code(), BOUND_SECONDS)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    first.cancel()
