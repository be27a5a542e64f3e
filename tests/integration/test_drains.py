"""Calls that arrive during a drain, on both fronts: they get an answer or DRAINING, and none is cut short."""

import asyncio
import contextlib

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.fronts import grpcio
from tests.integration.conftest import BOUND_SECONDS, refusal_of, settings
from tests.integration.echo_service import ECHO_SERVERS

NUM_CALLERS = 200
NUM_CHANNELS = 8
DRAINING = ("UNAVAILABLE", "DRAINING")


class Rig:
    """An echo server that a test drains, and its clients."""

    def __init__(self, server, address):
        self.server = server
        self._address = address
        self.channels = [self.channel() for _ in range(NUM_CHANNELS)]

    def channel(self):
        """Returns a channel with a connection of its own."""
        return aio.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)])

    async def call_without_end(self):
        """Begins a call that is never answered, and returns it once its method has begun."""
        waiting = unary(self.channels[0], "Wait")
        async with asyncio.timeout(BOUND_SECONDS):
            while "waits" not in (await unary(self.channels[0], "Events", "")).value:
                pass
        return waiting

    async def until_refused(self):
        """Waits until the drain has begun."""
        async with asyncio.timeout(BOUND_SECONDS):
            while await outcome(self.channels[0]) != DRAINING:
                pass

    async def close(self):
        """Closes the channels and ends the server."""
        await asyncio.gather(*(channel.close() for channel in self.channels))
        await self.server.stop()


@contextlib.asynccontextmanager
async def serving(front, **changes):
    """Serves for as long as the block lasts; `changes` are settings."""
    server = ECHO_SERVERS[front]()
    rig = Rig(server, await server.start(settings(front=front, **changes)))
    try:
        yield rig
    finally:
        await rig.close()


@pytest.fixture
async def rig(front, monkeypatch):
    """An echo server on each front, with time for a busy machine to bring calls that are on their way."""
    monkeypatch.setattr(grpcio, "_QUIET_NAPS", 100)
    monkeypatch.setattr(grpcio, "_MAX_QUIET_SECONDS", BOUND_SECONDS / 2)
    async with serving(front) as rig:
        yield rig


@contextlib.asynccontextmanager
async def draining_with_an_active_call(rig):
    """Drains a server whose active call lasts as long as the block."""
    waiting = await rig.call_without_end()
    draining = asyncio.create_task(rig.server.drain())
    await rig.until_refused()
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


class TestCallsDuringADrain:
    """Calls at every moment of a drain."""

    async def test_calls_at_any_moment_are_answered_or_refused(self, rig):
        """Callers go on until they are refused: before the drain, while it begins, and up to its end."""
        answered = asyncio.Event()
        num_answered = 0

        async def call_until_refused(channel):
            nonlocal num_answered
            while (found := await outcome(channel)) == ("OK", ""):
                num_answered += 1
                if num_answered >= 2 * NUM_CALLERS:
                    answered.set()
            return found

        callers = [
            asyncio.create_task(call_until_refused(rig.channels[number % NUM_CHANNELS]))
            for number in range(NUM_CALLERS)
        ]
        await asyncio.wait_for(answered.wait(), BOUND_SECONDS)
        assert await asyncio.wait_for(rig.server.drain(), BOUND_SECONDS)
        assert set(await asyncio.gather(*callers)) == {DRAINING}

    async def test_new_calls_are_refused_while_a_call_is_active(self, rig):
        """Connections old and new refuse any number of unary calls, and streams without a message."""
        async with draining_with_an_active_call(rig):
            found = await asyncio.gather(
                *(outcome(rig.channels[number % NUM_CHANNELS]) for number in range(NUM_CALLERS))
            )
            assert set(found) == {DRAINING}
            async with rig.channel() as late:
                assert await outcome(late) == DRAINING
                talk = late.stream_stream("/t/Talk", StringValue.SerializeToString, StringValue.FromString)
                assert await asyncio.wait_for(ending(talk().read()), BOUND_SECONDS) == DRAINING

    async def test_calls_on_their_way_as_the_last_active_call_ends_are_refused(self, rig):
        """A burst comes at the moment at which the server has nothing left to wait for."""
        async with draining_with_an_active_call(rig):
            calls = [unary(rig.channels[number % NUM_CHANNELS], "Echo") for number in range(NUM_CALLERS)]
        found = await asyncio.gather(*(ending(call) for call in calls))
        assert set(found) == {DRAINING}

    async def test_health_reports_the_drain(self, rig):
        """Check is answered to the end; a Watch that begins gets NOT_SERVING and delays no drain."""
        async with draining_with_an_active_call(rig), rig.channel() as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            not_serving = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
            assert await stub.Check(health_pb2.HealthCheckRequest()) == not_serving
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert await asyncio.wait_for(watch.read(), BOUND_SECONDS) == not_serving
            assert await asyncio.wait_for(ending(watch.read()), BOUND_SECONDS) == DRAINING


class TestEndOfADrain:
    """When a drain ends."""

    async def test_idle_connections_do_not_delay_a_drain(self, front):
        """The connections are open and no call is active: the drain ends long before its timeout."""
        async with serving(front, drain_timeout_seconds=100 * BOUND_SECONDS) as rig:
            for channel in rig.channels:
                assert await outcome(channel) == ("OK", "")
            assert await asyncio.wait_for(rig.server.drain(), BOUND_SECONDS)

    async def test_a_drain_without_time_is_clean_if_no_call_is_active(self, front):
        """A timeout of 0 means not to wait; where there is nothing to wait for, nothing was cut short."""
        async with serving(front, drain_timeout_seconds=0.0) as rig:
            assert await outcome(rig.channels[0]) == ("OK", "")
            assert await asyncio.wait_for(rig.server.drain(), BOUND_SECONDS)

    async def test_a_call_that_never_ends_is_aborted_at_the_timeout(self, front):
        """The timeout holds although other clients call without a pause, and the drain was not clean."""
        async with serving(front, drain_timeout_seconds=0.5) as rig:
            waiting = await rig.call_without_end()
            drained = asyncio.create_task(rig.server.drain())

            async def call_on(channel):
                while not drained.done():
                    await outcome(channel)

            callers = [asyncio.create_task(call_on(channel)) for channel in rig.channels]
            assert not await asyncio.wait_for(drained, BOUND_SECONDS)
            await asyncio.gather(*callers)
            assert await waiting.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
