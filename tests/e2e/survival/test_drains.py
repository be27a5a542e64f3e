"""Servers that drain, idle and overloaded: the next server has every step that was answered."""

import asyncio

import numpy as np
import pytest
from grpc import aio
from streamcell import errors
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from tests.e2e.conftest import BOUND_SECONDS
from tests.e2e.survival.fleet import FRONTS, MODEL, every_front, scaled
from tests.integration.conftest import folded, inputs

NUM_SESSIONS = 40
NEVER = ("--checkpoint-interval-seconds", "3600")
QUEUE_STEPS = 16
NUM_STREAMS = 48
NUM_CALLERS = 16
AHEAD_STEPS = 100  # in flight in each stream: more than the queue takes of all streams together
NUM_ANSWERS = scaled(1_000, 50_000)  # of all callers together, before the server drains


def connections(address, count):
    """Returns channels with a connection each, so that they spread over the workers."""
    return [aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(count)]


@pytest.mark.parametrize(
    ("front", "workers"),
    scaled([("envoy", 1), ("grpcio", 2)], [(front, workers) for front in FRONTS for workers in (1, 2)]),
)
async def test_the_next_server_has_all_sessions_of_a_drained_one(
    new_replica, store_url, model, front, workers
):
    """Nothing was stored before the drain; steps without an index continue where the answers ended."""
    replica = new_replica("--store", store_url, "--workers", str(workers), *NEVER)
    x = np.stack([inputs(seed, 5) for seed in range(NUM_SESSIONS)])  # (S, T, 1)
    y = np.stack([folded(model, row) for row in x])
    for steps in (range(3), range(3, 5)):
        await replica.start()
        channels = connections(replica.listen, 8)
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
        await replica.drain()


class Callers:
    """Callers who together send far more than a queue takes, each with a session and a connection."""

    def __init__(self, listen):
        self._listen = listen
        self._answered = asyncio.Event()
        self._is_sending = True
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

    async def send_steps(self):
        """Sends steps without an index, so that each OK is one step; returns when the server has ended."""
        await asyncio.gather(
            *(
                (self._stream if name.startswith("stream") else self._call)(name, channel)
                for name, channel in self._channels.items()
            )
        )

    def stop_sending(self):
        """Stops all callers; many steps are still in flight then."""
        self._is_sending = False

    async def until_answered(self, count, sending):
        """Waits until so many steps were answered and some refused; raises the error that ended the task."""
        sending.add_done_callback(lambda _: self._answered.set())
        async with asyncio.timeout(BOUND_SECONDS):
            while sum(self.answered.values()) < count or not self.num_overloaded:
                self._answered.clear()
                if sending.done():
                    sending.result()
                await self._answered.wait()

    def _record(self, name, error):
        if error is None:
            self.answered[name] += 1
        else:
            assert isinstance(error, errors.Overloaded), error
            self.num_overloaded += 1
        self._answered.set()

    async def _stream(self, name, channel):
        call, room = stubs.StreamcellServiceStub(channel).Stream(), asyncio.Semaphore(AHEAD_STEPS)

        async def write():
            while await room.acquire() and self._is_sending:
                await call.write(pb.StreamRequest(step=pb.StepRequest(session_id=name, x=[0.5])))

        async def read():
            while isinstance(reply := await call.read(), pb.StreamResponse):
                self._record(name, errors.from_stream_error(reply.error) if reply.HasField("error") else None)
                room.release()

        writing = asyncio.create_task(write())
        with pytest.raises(aio.AioRpcError) as caught:
            await read()
        # After a write to a call that has just ended, grpcio's client has lost the status that it received.
        if caught.value.details() != "Internal error from Core":
            assert isinstance(errors.from_rpc_error(caught.value), errors.Draining), caught.value
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)

    async def _call(self, name, channel):
        stub = stubs.StreamcellServiceStub(channel)
        while self._is_sending:
            try:
                await stub.Step(pb.StepRequest(session_id=name, x=[0.5]))
                self._record(name, None)
            except aio.AioRpcError as error:
                failure = errors.from_rpc_error(error)
                if isinstance(failure, errors.Unavailable) and not self._is_sending:
                    return  # the call came while the server ended
                self._record(name, failure)


@every_front("envoy", "grpcio")
async def test_an_overloaded_server_that_drains_loses_no_answer(new_replica, store_url):
    """OVERLOADED is the only error, a refused step changes nothing, and the next server has every answer."""
    replica = new_replica("--store", store_url, "--max-queue-steps", str(QUEUE_STEPS), *NEVER)
    await replica.start()
    callers = Callers(replica.listen)
    await callers.open()
    sending = asyncio.create_task(callers.send_steps())
    await callers.until_answered(NUM_ANSWERS, sending)
    callers.stop_sending()
    await replica.drain()
    await asyncio.wait_for(sending, BOUND_SECONDS)
    await callers.close()
    await replica.start()
    async with aio.insecure_channel(replica.listen) as channel:
        stub = stubs.StreamcellServiceStub(channel)
        for name, count in callers.answered.items():
            session = (await stub.GetSession(pb.GetSessionRequest(session_id=name))).session
            assert session.next_step_index == count, name
    await replica.drain()
