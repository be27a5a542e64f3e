"""Clients that know no step protocol, behind a balancer that knows no sessions: no call is refused.

Each call goes to a server drawn by chance among those whose health is SERVING. The calls have no step index,
and nobody repeats them.
"""

import asyncio
import contextlib
import os
import random
import signal

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from tests.e2e.conftest import BOUND_SECONDS, children
from tests.e2e.survival.fleet import MODEL, every_front, every_store_and_front, scaled
from tests.integration.conftest import folded, inputs

NUM_CLIENTS = 12
NUM_STEPS = scaled(20, 200)  # of each client, between two changes of the fleet
NUM_ROUNDS = scaled(1, 4)
MAX_STEPS = 20_000
# While nobody has stored anything by itself: what a server passes on is not what it had stored by chance.
NEVER = ("--checkpoint-interval-seconds", "3600")


class Balancer:
    """Draws a server for each call among those that say SERVING; knows nothing of what they serve."""

    def __init__(self, seed):
        self._chance = random.Random(seed)
        self._channels = {}
        self._watching = {}
        self._changed = asyncio.Event()
        self.serving = set()

    def add(self, replica):
        """Begins to watch a server's health."""
        self._channels[replica] = aio.insecure_channel(
            replica.listen, [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        )
        self._watching[replica] = asyncio.create_task(self._watch(replica))

    async def remove(self, replica):
        """Forgets a server that has ended."""
        self._watching[replica].cancel()
        await asyncio.wait([self._watching.pop(replica)])
        self.serving.discard(replica)
        await self._channels.pop(replica).close()

    async def until(self, condition):
        """Waits until a condition on the servers' health is true."""
        async with asyncio.timeout(BOUND_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def stub(self):
        """Returns the stub of a server drawn by chance."""
        drawn = self._chance.choice(sorted(self.serving, key=lambda replica: replica.listen))
        return stubs.StreamcellServiceStub(self._channels[drawn])

    async def close(self):
        """Forgets every server."""
        for replica in list(self._channels):
            await self.remove(replica)

    async def _watch(self, replica):
        watch = health_pb2_grpc.HealthStub(self._channels[replica]).Watch(
            health_pb2.HealthCheckRequest(), wait_for_ready=True
        )
        with contextlib.suppress(aio.AioRpcError):
            async for reply in watch:
                is_serving = reply.status == health_pb2.HealthCheckResponse.SERVING
                (self.serving.add if is_serving else self.serving.discard)(replica)
                self._changed.set()
        self.serving.discard(replica)
        self._changed.set()


class PlainClient:
    """One session, one step after another."""

    def __init__(self, number):
        self.session_id = f"plain-{number}"
        self._x = inputs(number, MAX_STEPS)
        self.y = []

    async def open(self, balancer):
        """Opens the session."""
        request = pb.OpenSessionRequest(session_id=self.session_id, model=MODEL)
        await balancer.stub().OpenSession(request, timeout=BOUND_SECONDS)

    async def steps(self, balancer, count):
        """Applies steps; a step that is refused, or applied out of its turn, fails."""
        for _ in range(count):
            request = pb.StepRequest(session_id=self.session_id, x=self._x[len(self.y)])
            reply = await balancer.stub().Step(request, timeout=BOUND_SECONDS)
            assert reply.step_index == len(self.y), self.session_id
            self.y.append(list(reply.y))

    def check(self, model):
        """Compares every answer with the session computed alone."""
        assert self.y == folded(model, self._x[: len(self.y)]).tolist(), self.session_id


async def until_stored(session_id, stub):
    """Waits until the store has every step of a session; `stub` returns the stub for a call."""
    request = pb.GetSessionRequest(session_id=session_id)
    async with asyncio.timeout(BOUND_SECONDS):
        while True:
            session = (await stub().GetSession(request, timeout=BOUND_SECONDS)).session
            if session.num_durable_steps == session.next_step_index:
                return


async def use(balancer, clients, count=NUM_STEPS):
    """All clients apply steps at once."""
    await asyncio.gather(*(client.steps(balancer, count) for client in clients))


async def counts(balancer, name):
    """Returns a metric of each server that serves."""
    return await asyncio.gather(*(replica.metric(name) for replica in balancer.serving))


@every_store_and_front(("sqlite", "envoy"))
async def test_servers_come_and_go_without_a_refused_call(new_replica, store_url, model):
    """One of three is added, and one drains, while the clients go on; nothing was stored before."""
    flags = ("--store", store_url, "--drain-delay-seconds", "5", *NEVER)
    replicas = [new_replica(*flags) for _ in range(3)]
    await asyncio.gather(*(replica.start() for replica in replicas))
    balancer, clients = Balancer(seed=1), [PlainClient(number) for number in range(NUM_CLIENTS)]
    try:
        for replica in replicas[:2]:
            balancer.add(replica)
        await balancer.until(lambda: len(balancer.serving) == 2)
        await asyncio.gather(*(client.open(balancer) for client in clients))
        for number in range(NUM_ROUNDS):
            using = asyncio.create_task(use(balancer, clients))
            added, leaving = replicas[(number + 2) % 3], replicas[number % 3]
            if number:
                await added.start()
            balancer.add(added)
            await balancer.until(lambda: len(balancer.serving) == 3)
            await using
            using = asyncio.create_task(use(balancer, clients))
            draining = asyncio.create_task(leaving.drain())
            await asyncio.gather(using, draining)
            await balancer.remove(leaving)
        await use(balancer, clients)
        moves = await counts(balancer, "streamcell_sessions_handed_over_total")
        fences = await counts(balancer, "streamcell_sessions_fenced_total")
    finally:
        await balancer.close()
    for client in clients:
        client.check(model)
    assert sum(moves) > 0
    assert fences == [0.0] * 2


@every_store_and_front(("redis", "grpcio"))
async def test_the_sessions_of_a_killed_server_are_for_every_step(new_replica, store_url, model):
    """What it had stored goes on at any server a client comes to, without an index or an OpenSession."""
    flags = ("--store", store_url, "--checkpoint-interval-seconds", "0.05")
    replicas = [new_replica(*flags) for _ in range(3)]
    await asyncio.gather(*(replica.start() for replica in replicas))
    balancer, clients = Balancer(seed=2), [PlainClient(number) for number in range(NUM_CLIENTS)]
    try:
        for replica in replicas:
            balancer.add(replica)
        await balancer.until(lambda: len(balancer.serving) == 3)
        await asyncio.gather(*(client.open(balancer) for client in clients))
        for replica in replicas[:2]:
            await use(balancer, clients)
            await asyncio.gather(*(until_stored(client.session_id, balancer.stub) for client in clients))
            await replica.kill()
            await balancer.until(lambda replica=replica: replica not in balancer.serving)
        await use(balancer, clients)
    finally:
        await balancer.close()
    for client in clients:
        client.check(model)


@every_front("grpcio")
async def test_workers_share_sessions_and_a_killed_one_refuses_no_later_call(new_replica, model):
    """Connections spread over the workers, so each step may come to another one; without `--store` too.

    A worker that is killed takes the steps with it that were not stored; here all were.
    """
    replica = new_replica("--workers", "2", "--checkpoint-interval-seconds", "0.05")
    await replica.start()
    channels = [
        aio.insecure_channel(replica.listen, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(8)
    ]
    each = [stubs.StreamcellServiceStub(channel) for channel in channels]
    x, y = inputs(3, MAX_STEPS), []

    async def step(stub, **fields):
        request = pb.StepRequest(session_id="s", x=x[len(y)], **fields)
        reply = await stub.Step(request, timeout=BOUND_SECONDS, wait_for_ready=True)
        assert reply.step_index == len(y)
        y.append(list(reply.y))

    await step(each[0], model=MODEL, step_index=0)
    for number in range(NUM_STEPS * 4):
        await step(each[number % 8])
    assert await replica.metric("streamcell_sessions_fenced_total") == 0
    await until_stored("s", lambda: each[0])
    victim = children(replica.server.process.pid)[0]
    os.kill(victim, signal.SIGKILL)
    await asyncio.to_thread(replica.server.event, "worker_ended")
    await asyncio.gather(*(channel.close() for channel in channels))
    async with aio.insecure_channel(replica.listen) as channel:
        for _ in range(NUM_STEPS):
            await step(stubs.StreamcellServiceStub(channel))
    assert y == folded(model, x[: len(y)]).tolist()
