"""Clients that ping often: a ping a second is let alone on every front, while a stream is open or none is."""

import asyncio
import os

import pytest
from grpc import aio
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

IS_FULL = os.environ.get("STREAMCELL_E2E") == "full"
# gRPC's server ends a connection at the third ping that came too early.
INTERVALS_MS = (1000, 2000, 5000) if IS_FULL else (1000,)
NUM_PINGS = 6


@pytest.mark.parametrize("interval_ms", INTERVALS_MS)
def test_a_client_may_ping_every_second(start_server, interval_ms):
    """An idle stream lasts, and so does a connection without a call."""
    server = start_server()
    listen = server.event("serving")["listen"]
    options = [
        ("grpc.keepalive_time_ms", interval_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]

    async def with_a_stream():
        async with aio.insecure_channel(listen, options) as channel:
            stub = stubs.StreamcellServiceStub(channel)
            await stub.OpenSession(pb.OpenSessionRequest(session_id="s", model="mackey-glass"))
            stream = stub.Stream()
            for index in range(2):
                await stream.write(pb.StreamRequest(step=pb.StepRequest(session_id="s", x=[0.5])))
                assert (await stream.read()).step.step_index == index
                await asyncio.sleep(NUM_PINGS * interval_ms / 1000 * (1 - index))
            stream.cancel()

    async def without_a_call():
        async with aio.insecure_channel(listen, options) as channel:
            await channel.channel_ready()
            watching = asyncio.create_task(channel.wait_for_state_change(channel.get_state()))
            await asyncio.wait((watching,), timeout=NUM_PINGS * interval_ms / 1000)
            assert not watching.done(), "the server has closed the connection"
            watching.cancel()

    async def both():
        await asyncio.gather(with_a_stream(), without_a_call())

    asyncio.run(both())
    server.signal()
    assert server.wait() == 0
