"""Sessions that several servers want: one owner at a time, and clients that move see no error."""

import asyncio

import numpy as np
from grpc import aio
from streamcell import errors
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from tests.e2e.conftest import BOUND_SECONDS
from tests.e2e.survival.fleet import MODEL, every_store_and_front, scaled
from tests.e2e.survival.load import Load, Stepper, Streamer
from tests.integration.conftest import folded, inputs

NUM_FENCES = scaled(10, 100)
NUM_ROUNDS = scaled(1, 5)  # of three servers
X = inputs(seed=3, num_steps=20_000)


class Writer:
    """A client of one session that stays on one server."""

    def __init__(self, channel, answers):
        self._stub = stubs.StreamcellServiceStub(channel)
        self._answers = answers
        self._next = 0

    async def take_over(self):
        """Makes its server the session's owner, and continues where the session stands."""
        reply = await self._stub.OpenSession(pb.OpenSessionRequest(session_id="s", model=MODEL))
        self._next = reply.session.next_step_index

    async def could_take_over(self):
        """Takes the session over; returns False if the store is locked."""
        try:
            await self.take_over()
        except aio.AioRpcError as error:
            if not isinstance(errors.from_rpc_error(error), errors.StoreUnavailable):
                raise
            return False
        return True

    async def step(self):
        """Applies the next step; raises Fenced if another server has the session."""
        request = pb.StepRequest(session_id="s", x=X[self._next], step_index=self._next)
        try:
            reply = await self._stub.Step(request, timeout=BOUND_SECONDS)
        except aio.AioRpcError as error:
            raise errors.from_rpc_error(error) from error
        self._answers.append((reply.step_index, reply.y[0]))
        self._next += 1

    async def stored(self):
        """Returns when its server has stored every step, so that another server finds the newest state."""
        async with asyncio.timeout(BOUND_SECONDS):
            while True:
                reply = await self._stub.GetSession(pb.GetSessionRequest(session_id="s"))
                if reply.session.num_durable_steps == reply.session.next_step_index:
                    return

    async def until_fenced(self):
        """Sends steps until its server finds that another one owns the session."""
        try:
            async with asyncio.timeout(BOUND_SECONDS):
                while True:
                    await self.step()
        except errors.Fenced:
            return


@every_store_and_front(("sqlite", "grpcio"), ("redis", "envoy"))
async def test_an_owner_that_was_frozen_is_fenced_and_other_sessions_go_on(new_replica, store_url, model):
    """The server that took the session over goes on; the other one answers SESSION_FENCED once it is back."""
    flags = ("--store", store_url, "--checkpoint-interval-seconds", "0.05")
    replicas = [new_replica(*flags), new_replica(*flags)]
    await asyncio.gather(*(replica.start() for replica in replicas))
    answers = []
    async with (
        Load(replicas[0].listen, model, 5, num_each=1, kinds=(Stepper,), gateway=0),
        Load(replicas[1].listen, model, 6, num_each=1, kinds=(Stepper,), gateway=0),
        aio.insecure_channel(replicas[0].listen) as one,
        aio.insecure_channel(replicas[1].listen) as other,
    ):
        owner, next_owner = Writer(one, answers), Writer(other, answers)
        await owner.take_over()
        await owner.step()
        for number in range(NUM_FENCES):
            frozen = replicas[number % 2]
            await owner.stored()
            frozen.freeze()
            while not await next_owner.could_take_over():
                # It was stopped within a transaction, and SQLite's file is locked until it goes on.
                frozen.thaw()
                await owner.stored()
                frozen.freeze()
            await next_owner.step()
            frozen.thaw()
            await owner.until_fenced()
            await next_owner.step()
            owner, next_owner = next_owner, owner
        assert (
            sum([await replica.metric("streamcell_sessions_fenced_total") for replica in replicas])
            == NUM_FENCES
        )
    indexes, y = (np.array(column) for column in zip(*answers, strict=True))
    assert np.array_equal(y.astype(np.float32), folded(model, X[: indexes.max() + 1])[indexes, 0])


@every_store_and_front(("sqlite", "envoy"))
async def test_a_stream_moves_over_servers_that_stop_one_after_another(new_replica, store_url, model):
    """SIGTERM is no error for a stream: it goes on at the next target, with the same bits."""
    replicas = [new_replica("--store", store_url) for _ in range(3)]
    await asyncio.gather(*(replica.start() for replica in replicas[:2]))
    targets = ",".join(replica.listen for replica in replicas)
    async with Load(targets, model, 7, num_each=1, kinds=(Streamer,), gateway=0) as load:
        for number in range(3 * NUM_ROUNDS):
            await load.all_answered(100)
            starting = asyncio.create_task(replicas[(number + 2) % 3].start())
            await replicas[number % 3].drain()
            await starting
        await load.all_answered(100)
