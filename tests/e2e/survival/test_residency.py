"""Many more sessions than have room in memory: all answer rightly, and the memory does not grow with them."""

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
NUM_ROUNDS = 2  # of frames; the first step of a session opens it, on its own
NUM_SERIES = 997  # different ones; neighbours in a frame differ, so nobody gets another one's state unseen
# What the server may grow by while all but the first few sessions come: fragments, and the rest of SQLite's
# page cache. In memory a session takes over 1 KiB, so that those of a full run would take over 200 MiB.
MAX_GROWTH_BYTES = 30 << 20


class Crowd:
    """Sessions that take the same few series, on one stream of a server."""

    def __init__(self, truth):
        x = np.stack([inputs(seed, 1 + NUM_ROUNDS)[:, 0] for seed in range(NUM_SERIES)])  # (series, T)
        y = np.stack([folded(truth, row[:, None])[:, 0] for row in x])
        series = np.arange(NUM_SESSIONS) % NUM_SERIES
        self._x, self._y = x[series], y[series]  # (S, T)
        self._ids = [f"s{number}" for number in range(NUM_SESSIONS)]

    async def begin(self, call, numbers):
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

    async def go_on(self, call, numbers, index):
        """Has sessions take their next step, many in each frame, and checks the answers."""
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
async def test_sessions_that_have_no_room_are_spilled_and_come_back(new_seat, store_url, truth):
    """Opened one by one, then called again in any order: the store has whom memory has not."""
    crowd, order = Crowd(truth), np.random.default_rng(4)
    few, others = np.split(np.arange(NUM_SESSIONS), [4 * NUM_RESIDENT])
    seat = new_seat("--store", store_url, "--max-resident-sessions", str(NUM_RESIDENT))
    await seat.start()
    async with aio.insecure_channel(seat.listen) as channel:
        call = stubs.StreamcellServiceStub(channel).Stream()
        await crowd.begin(call, few)
        await crowd.go_on(call, order.permutation(few), 1)
        before = seat.resident_bytes()
        await crowd.begin(call, others)
        await crowd.go_on(call, order.permutation(others), 1)
        await crowd.go_on(call, order.permutation(NUM_SESSIONS), 2)
        assert seat.resident_bytes() - before < MAX_GROWTH_BYTES
        await call.done_writing()
        assert await call.read() is aio.EOF
    assert await seat.figure("streamcell_sessions_opened_total") == NUM_SESSIONS
    assert await seat.figure("streamcell_sessions_open") <= NUM_RESIDENT
    await seat.drain()
