"""Servers that are killed under load: no step is lost or applied twice, every prediction is right."""

import asyncio
import os
import random
import signal

import pytest

from tests.e2e.conftest import children
from tests.e2e.survival.fleet import every_front, every_store_and_front, scaled
from tests.e2e.survival.load import KINDS, DurableStepper, Load, Streamer

NUM_KILLS = scaled(3, 50)  # of each store and front: 100 of each store
NUM_WORKERS_KILLED = scaled(1, 20)
LONGEST_LIFE_SECONDS = 0.8  # under load, so that many kills come during the recovery from the one before


@every_store_and_front(("sqlite", "envoy"), ("redis", "grpcio"))
@pytest.mark.parametrize("seed", [1])
async def test_kill_9_loses_no_step_and_applies_none_twice(new_replica, store_url, model, seed):
    """At random moments of streams, unary steps, frames and primes: the bits of an uninterrupted run."""
    chance = random.Random(seed)
    replica = new_replica("--store", store_url, "--checkpoint-interval-seconds", "0.1")
    await replica.start()
    async with Load(replica.listen, model, seed, kinds=(*KINDS, DurableStepper)) as load:
        await load.all_answered()
        for number in range(NUM_KILLS):
            if number % 2:
                await load.all_answered()
            await asyncio.sleep(chance.uniform(0, LONGEST_LIFE_SECONDS))
            await replica.kill()
            await replica.start()
        await load.all_answered()


@every_front("grpcio")
async def test_streams_go_on_when_a_worker_is_killed(new_replica, model):
    """Workers share a store of the server's own, without `--store`."""
    replica = new_replica("--workers", "2", "--checkpoint-interval-seconds", "0.1")
    await replica.start()
    async with Load(replica.listen, model, 2, num_each=4, kinds=(Streamer,), gateway=0) as load:
        for number in range(NUM_WORKERS_KILLED):
            await load.all_answered(50)
            workers = children(replica.server.process.pid)
            os.kill(workers[number % len(workers)], signal.SIGKILL)
            await asyncio.to_thread(replica.server.event, "worker_restarted")
        await load.all_answered(50)
