"""Sessions that several servers come for: one owner at a time, and a client that moves notices nothing."""

import asyncio

import numpy as np
from grpc import aio
from streamcell import errors
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from tests.e2e.survival.fleet import MODEL, every_store_and_front, scaled
from tests.e2e.survival.load import Load, Stepper, Streamer
from tests.integration.conftest import BOUND_SECONDS, folded, inputs

NUM_FENCES = scaled(10, 100)
NUM_ROUNDS = scaled(1, 5)  # of three servers
X = inputs(seed=3, num_steps=20_000)


class Writer:
    """A client of one session on one server, which never goes elsewhere."""

    def __init__(self, channel, answers):
        self._stub = stubs.StreamcellServiceStub(channel)
        self._answers = answers
        self._next = 0

    async def take_over(self):
        """Makes its server the session's owner, and goes on where that stands."""
        reply = await self._stub.OpenSession(pb.OpenSessionRequest(session_id="s", model=MODEL))
        self._next = reply.session.next_step_index

    async def step(self):
        """Applies the next step; raises Fenced if another server has the session."""
        request = pb.StepRequest(session_id="s", x=X[self._next], step_index=self._next)
        try:
            reply = await self._stub.Step(request, timeout=BOUND_SECONDS)
        except aio.AioRpcError as error:
            raise errors.from_rpc_error(error) from error
        self._answers.append((reply.step_index, reply.y[0]))
        self._next += 1

    async def until_fenced(self):
        """Steps until its server has found out."""
        try:
            async with asyncio.timeout(BOUND_SECONDS):
                while True:
                    await self.step()
        except errors.Fenced:
            return


@every_store_and_front(("sqlite", "grpcio"), ("redis", "envoy"))
async def test_of_two_writers_one_is_fenced_and_nobody_else_is_disturbed(new_seat, store_url, truth):
    """Whoever took the session over last goes on; the other one hears SESSION_FENCED, every time."""
    flags = ("--store", store_url, "--checkpoint-interval-seconds", "0.05")
    seats = [new_seat(*flags), new_seat(*flags)]
    await asyncio.gather(*(seat.start() for seat in seats))
    answers = []
    async with (
        Load(seats[0].listen, truth, 5, num_each=1, kinds=(Stepper,), gateway=0),
        Load(seats[1].listen, truth, 6, num_each=1, kinds=(Stepper,), gateway=0),
        aio.insecure_channel(seats[0].listen) as one,
        aio.insecure_channel(seats[1].listen) as other,
    ):
        owner, next_owner = Writer(one, answers), Writer(other, answers)
        await owner.take_over()
        await owner.step()
        for _ in range(NUM_FENCES):
            await next_owner.take_over()
            await next_owner.step()
            await owner.until_fenced()
            await next_owner.step()
            owner, next_owner = next_owner, owner
        assert sum([await seat.figure("streamcell_sessions_fenced_total") for seat in seats]) == NUM_FENCES
    indexes, y = (np.array(column) for column in zip(*answers, strict=True))
    assert np.array_equal(y.astype(np.float32), folded(truth, X[: indexes.max() + 1])[indexes, 0])


@every_store_and_front(("sqlite", "envoy"))
async def test_a_stream_moves_over_servers_that_stop_one_after_another(new_seat, store_url, truth):
    """SIGTERM is no error for who streams: the next of the targets goes on, with the same bits."""
    seats = [new_seat("--store", store_url) for _ in range(3)]
    await asyncio.gather(*(seat.start() for seat in seats[:2]))
    targets = ",".join(seat.listen for seat in seats)
    async with Load(targets, truth, 7, num_each=1, kinds=(Streamer,), gateway=0) as load:
        for number in range(3 * NUM_ROUNDS):
            await load.everyone_moves(100)
            starting = asyncio.create_task(seats[(number + 2) % 3].start())
            await seats[number % 3].drain()
            await starting
        await load.everyone_moves(100)
