"""Servers that are told to go, at rest and overloaded: what was answered is what their successors have."""

import asyncio

import numpy as np
import pytest
from grpc import aio
from streamcell import errors
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from tests.e2e.survival.fleet import FRONTS, MODEL, every_front, scaled
from tests.integration.conftest import BOUND_SECONDS, folded, inputs

NUM_SESSIONS = 40
NEVER = ("--checkpoint-interval-seconds", "3600")
QUEUE_STEPS = 16
NUM_STREAMS = 48
NUM_CALLERS = 16
AHEAD_STEPS = 100  # on their way in each stream: more than the queue takes of all
NUM_ANSWERS = scaled(1_000, 50_000)  # of all, before the server is told to go


def connections(address, count):
    """Returns channels with a connection each: they spread over workers."""
    return [aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(count)]


@pytest.mark.parametrize(
    ("front", "workers"),
    scaled([("envoy", 1), ("grpcio", 2)], [(front, workers) for front in FRONTS for workers in (1, 2)]),
)
async def test_a_drain_leaves_all_to_the_successor(new_seat, store_url, truth, front, workers):
    """Nothing was stored until then; steps without an index go on at once, where the answers ended."""
    seat = new_seat("--store", store_url, "--workers", str(workers), *NEVER)
    x = np.stack([inputs(seed, 5) for seed in range(NUM_SESSIONS)])  # (S, T, 1)
    y = np.stack([folded(truth, row) for row in x])
    for steps in (range(3), range(3, 5)):
        await seat.start()
        channels = connections(seat.listen, 8)
        for number in range(NUM_SESSIONS):
            stub = stubs.StreamcellServiceStub(channels[number % len(channels)])
            for step in steps:
                index = 0 if step == 0 else None
                request = pb.StepRequest(
                    session_id=f"s{number}", model=MODEL, x=x[number, step], step_index=index
                )
                reply = await stub.Step(request, timeout=BOUND_SECONDS)
                assert (reply.step_index, reply.y) == (step, y[number, step].tolist())
        await asyncio.gather(*(channel.close() for channel in channels))
        await seat.drain()


class Crowd:
    """Callers who together offer far more than a queue takes, each with a session and a connection."""

    def __init__(self, listen):
        self._listen = listen
        self._told = asyncio.Event()
        self._goes_on = True
        self.num_overloaded = 0
        self.answered = {}  # steps, by session

    async def open(self):
        """Connects, and opens the sessions."""
        names = [f"stream-{n}" for n in range(NUM_STREAMS)] + [f"call-{n}" for n in range(NUM_CALLERS)]
        self._channels = dict(zip(names, connections(self._listen, len(names)), strict=True))
        for name, channel in self._channels.items():
            request = pb.OpenSessionRequest(session_id=name, model=MODEL)
            await stubs.StreamcellServiceStub(channel).OpenSession(request, timeout=BOUND_SECONDS)
            self.answered[name] = 0

    async def close(self):
        """Disconnects."""
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    async def press(self):
        """Sends steps without an index, so that each OK is one step; returns when the server is gone."""
        await asyncio.gather(
            *(
                (self._stream if name.startswith("stream") else self._call)(name, channel)
                for name, channel in self._channels.items()
            )
        )

    def hold(self):
        """Has nobody send any more; a lot is on its way still."""
        self._goes_on = False

    async def until_answered(self, count, pressing):
        """Waits until so many steps were answered, and others refused; raises what ended the task before."""
        pressing.add_done_callback(lambda _: self._told.set())
        async with asyncio.timeout(BOUND_SECONDS):
            while sum(self.answered.values()) < count or not self.num_overloaded:
                self._told.clear()
                if pressing.done():
                    pressing.result()
                await self._told.wait()

    def _take(self, name, error):
        if error is None:
            self.answered[name] += 1
        else:
            assert isinstance(error, errors.Overloaded), error
            self.num_overloaded += 1
        self._told.set()

    async def _stream(self, name, channel):
        call, room = stubs.StreamcellServiceStub(channel).Stream(), asyncio.Semaphore(AHEAD_STEPS)

        async def write():
            while await room.acquire() and self._goes_on:
                await call.write(pb.StreamRequest(step=pb.StepRequest(session_id=name, x=[0.5])))

        async def read():
            while isinstance(reply := await call.read(), pb.StreamResponse):
                self._take(name, errors.from_stream_error(reply.error) if reply.HasField("error") else None)
                room.release()

        writing = asyncio.create_task(write())
        with pytest.raises(aio.AioRpcError) as caught:
            await read()
        # A write to a call that has just ended has grpcio's client forget the status that it was sent.
        if caught.value.details() != "Internal error from Core":
            assert isinstance(errors.from_rpc_error(caught.value), errors.Draining), caught.value
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)

    async def _call(self, name, channel):
        stub = stubs.StreamcellServiceStub(channel)
        while self._goes_on:
            try:
                await stub.Step(pb.StepRequest(session_id=name, x=[0.5]))
                self._take(name, None)
            except aio.AioRpcError as error:
                failure = errors.from_rpc_error(error)
                if isinstance(failure, errors.Unavailable) and not self._goes_on:
                    return  # it came while the server went
                self._take(name, failure)


@every_front("envoy", "grpcio")
async def test_an_overloaded_server_that_is_told_to_go_loses_no_answer(new_seat, store_url):
    """OVERLOADED is the only error, a refused step moves nothing, and the successor stands at the answers."""
    seat = new_seat("--store", store_url, "--max-queue-steps", str(QUEUE_STEPS), *NEVER)
    await seat.start()
    crowd = Crowd(seat.listen)
    await crowd.open()
    pressing = asyncio.create_task(crowd.press())
    await crowd.until_answered(NUM_ANSWERS, pressing)
    crowd.hold()
    await seat.drain()
    await asyncio.wait_for(pressing, BOUND_SECONDS)
    await crowd.close()
    await seat.start()
    async with aio.insecure_channel(seat.listen) as channel:
        stub = stubs.StreamcellServiceStub(channel)
        for name, count in crowd.answered.items():
            session = (await stub.GetSession(pb.GetSessionRequest(session_id=name))).session
            assert session.next_step_index == count, name
    await seat.drain()
