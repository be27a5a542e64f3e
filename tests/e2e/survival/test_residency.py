"""Many more sessions than have room in memory: all answers are right, and memory does not grow with them."""

import asyncio

import numpy as np
import pytest
from grpc import aio
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from tests.e2e.survival.fleet import MODEL, scaled
from tests.integration.conftest import answer, folded, inputs

NUM_SESSIONS = scaled(2_000, 200_000)
NUM_RESIDENT = scaled(100, 10_000)
FRAME_SESSIONS = NUM_RESIDENT // 4
NUM_ROUNDS = 2  # of frames, after a single step that opens each session
NUM_SERIES = 997  # neighbours in a frame differ, so that a state in the wrong session is found
# By how much the server may grow after the first few sessions: fragments, and the rest of SQLite's page
# cache. A session in memory takes over 1 KiB, so all sessions of a full run would take over 200 MiB.
MAX_GROWTH_BYTES = 30 << 20


class ManySessions:
    """Sessions with a limited number of different series, on one stream of a server."""

    def __init__(self, model):
        x = np.stack([inputs(seed, 1 + NUM_ROUNDS)[:, 0] for seed in range(NUM_SERIES)])  # (series, T)
        y = np.stack([folded(model, row[:, None])[:, 0] for row in x])
        series = np.arange(NUM_SESSIONS) % NUM_SERIES
        self._x, self._y = x[series], y[series]  # (S, T)
        self._ids = [f"s{number}" for number in range(NUM_SESSIONS)]

    async def open(self, call, numbers):
        """Opens sessions, each by its first step, and checks the answers."""

        async def write():
            for number in numbers:
                step = pb.StepRequest(
                    session_id=self._ids[number], model=MODEL, x=self._x[number, :1], step_index=0
                )
                await call.write(pb.StreamRequest(request_id=number, step=step))

        writing = asyncio.create_task(write())
        for _ in numbers:
            reply = await answer(call)
            assert not reply.HasField("error"), reply
            assert reply.step.y[0] == self._y[reply.request_id, 0]
        await writing

    async def step(self, call, numbers, index):
        """Sends the next step of sessions, many in each frame, and checks the answers."""
        for start in range(0, len(numbers), FRAME_SESSIONS):
            chosen = numbers[start : start + FRAME_SESSIONS]
            frame = pb.Frame(
                session_ids=[self._ids[number] for number in chosen],
                x_raw=self._x[chosen, index].tobytes(),
                step_index_raw=np.full(len(chosen), index, "<u8").tobytes(),
            )
            await call.write(pb.StreamRequest(frame=frame))
            reply = await answer(call)
            assert not reply.HasField("error"), reply
            assert not reply.frame.errors, reply.frame.errors[0]
            assert np.array_equal(np.frombuffer(reply.frame.y_raw, "<f4"), self._y[chosen, index])


@pytest.mark.parametrize(
    ("store", "front"), scaled([("sqlite", "grpcio")], [("sqlite", "grpcio"), ("redis", "envoy")])
)
async def test_sessions_without_room_are_evicted_and_come_back(new_replica, store_url, model):
    """Sessions are opened one by one, then called again in any order: the store has those not in memory."""
    sessions, order = ManySessions(model), np.random.default_rng(4)
    few, others = np.split(np.arange(NUM_SESSIONS), [4 * NUM_RESIDENT])
    replica = new_replica("--store", store_url, "--max-resident-sessions", str(NUM_RESIDENT))
    await replica.start()
    async with aio.insecure_channel(replica.listen) as channel:
        call = stubs.StreamcellServiceStub(channel).Stream()
        await sessions.open(call, few)
        await sessions.step(call, order.permutation(few), 1)
        before = replica.resident_bytes()
        await sessions.open(call, others)
        await sessions.step(call, order.permutation(others), 1)
        await sessions.step(call, order.permutation(NUM_SESSIONS), 2)
        assert replica.resident_bytes() - before < MAX_GROWTH_BYTES
        await call.done_writing()
        assert await call.read() is aio.EOF
    assert await replica.metric("streamcell_sessions_opened_total") == NUM_SESSIONS
    assert await replica.metric("streamcell_sessions_open") <= NUM_RESIDENT
    await replica.drain()
