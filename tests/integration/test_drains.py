"""What calls meet that arrive in a drain, on both fronts: an answer or DRAINING, never a call cut short."""

import asyncio
import contextlib

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.integration.conftest import BOUND_SECONDS, refusal_of, settings
from tests.integration.echo_service import HOUSES

NUM_CALLERS = 200
NUM_CHANNELS = 8
DRAINING = ("UNAVAILABLE", "DRAINING")


class Going:
    """A house that can be told to go, and its clients."""

    def __init__(self, house, address):
        self.house = house
        self._address = address
        self.channels = [self.channel() for _ in range(NUM_CHANNELS)]

    def channel(self):
        """Returns a channel with a connection of its own."""
        return aio.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)])

    async def until_refused(self):
        """Waits until the drain has begun."""
        async with asyncio.timeout(BOUND_SECONDS):
            while await outcome(self.channels[0]) != DRAINING:
                pass

    async def close(self):
        """Ends it all."""
        await asyncio.gather(*(channel.close() for channel in self.channels))
        await self.house.stop()


@contextlib.asynccontextmanager
async def begun(front, **changes):
    """A house for as long as the block lasts; `changes` are settings."""
    house = HOUSES[front]()
    going = Going(house, await house.start(settings(front=front, **changes)))
    try:
        yield going
    finally:
        await going.close()


@pytest.fixture
async def going(front):
    """A house on each front."""
    async with begun(front) as going:
        yield going


@contextlib.asynccontextmanager
async def held(going):
    """Drains a house with a call under way for as long as the block lasts."""
    waiting = unary(going.channels[0], "Wait")
    while "waits" not in (await unary(going.channels[0], "Told", "")).value:
        pass
    draining = asyncio.create_task(going.house.drain())
    await going.until_refused()
    try:
        yield draining
        assert not draining.done()
    finally:
        waiting.cancel()
        await asyncio.wait_for(draining, BOUND_SECONDS)


def unary(channel, name, text="x"):
    """Begins a call."""
    method = channel.unary_unary(f"/t/{name}", StringValue.SerializeToString, StringValue.FromString)
    return method(StringValue(value=text), timeout=BOUND_SECONDS)


async def outcome(channel, name="Echo"):
    """Makes a call and returns how it ended."""
    return await ending(unary(channel, name))


async def ending(awaitable):
    """Returns how a call ends."""
    try:
        await awaitable
    except aio.AioRpcError as error:
        found = refusal_of(error)
        return found.code, found.reason
    return "OK", ""


async def test_calls_at_any_moment_of_a_drain_are_answered_or_sent_elsewhere(going):
    """Callers who go on until they are refused: before the drain, while it begins, and up to its end."""
    answered = asyncio.Event()
    num_answered = 0

    async def call_on(channel):
        nonlocal num_answered
        while (found := await outcome(channel)) == ("OK", ""):
            num_answered += 1
            if num_answered >= 2 * NUM_CALLERS:
                answered.set()
        return found

    callers = [
        asyncio.create_task(call_on(going.channels[number % NUM_CHANNELS])) for number in range(NUM_CALLERS)
    ]
    await asyncio.wait_for(answered.wait(), BOUND_SECONDS)
    assert await asyncio.wait_for(going.house.drain(), BOUND_SECONDS)
    assert set(await asyncio.gather(*callers)) == {DRAINING}


async def test_while_calls_are_under_way_new_ones_are_sent_elsewhere(going):
    """However many come, on connections old and new: unary calls, and streams that have said nothing yet."""
    async with held(going):
        found = await asyncio.gather(
            *(outcome(going.channels[number % NUM_CHANNELS]) for number in range(NUM_CALLERS))
        )
        assert set(found) == {DRAINING}
        async with going.channel() as late:
            assert await outcome(late) == DRAINING
            talk = late.stream_stream("/t/Talk", StringValue.SerializeToString, StringValue.FromString)
            assert await asyncio.wait_for(ending(talk().read()), BOUND_SECONDS) == DRAINING


async def test_calls_on_their_way_as_the_last_one_ends_are_sent_elsewhere(going):
    """A burst at the moment at which the server has nothing left to wait for."""
    async with held(going):
        calls = [unary(going.channels[number % NUM_CHANNELS], "Echo") for number in range(NUM_CALLERS)]
    found = await asyncio.gather(*(ending(call) for call in calls))
    assert set(found) == {DRAINING}


async def test_a_drain_is_told_to_those_who_ask_for_the_health(going):
    """Check is answered to the end; a Watch that begins hears NOT_SERVING, and holds nothing up."""
    async with held(going), going.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        not_serving = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        assert await stub.Check(health_pb2.HealthCheckRequest()) == not_serving
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert await asyncio.wait_for(watch.read(), BOUND_SECONDS) == not_serving
        assert await asyncio.wait_for(ending(watch.read()), BOUND_SECONDS) == DRAINING


async def test_connections_at_rest_hold_no_drain_up(front):
    """They are open and nobody calls: the drain ends long before it must."""
    async with begun(front, drain_timeout_seconds=100 * BOUND_SECONDS) as going:
        for channel in going.channels:
            assert await outcome(channel) == ("OK", "")
        assert await asyncio.wait_for(going.house.drain(), settings().drain_timeout_seconds / 2)


async def test_a_call_that_never_ends_is_broken_off_in_time(front):
    """The bound holds though others call on without a pause."""
    async with begun(front, drain_timeout_seconds=0.5) as going:
        waiting = unary(going.channels[0], "Wait")
        while "waits" not in (await unary(going.channels[0], "Told", "")).value:
            pass
        drained = asyncio.create_task(going.house.drain())

        async def call_on(channel):
            while not drained.done():
                await outcome(channel)

        callers = [asyncio.create_task(call_on(channel)) for channel in going.channels]
        await asyncio.wait_for(drained, BOUND_SECONDS)
        await asyncio.gather(*callers)
        assert await waiting.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
