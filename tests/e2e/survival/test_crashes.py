"""Servers that are killed under load: no step is lost, none is applied twice, every prediction is right."""

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
LONGEST_LIFE_SECONDS = 0.8  # under load, so that many kills meet recoveries from the one before


@every_store_and_front(("sqlite", "envoy"), ("redis", "grpcio"))
@pytest.mark.parametrize("seed", [1])
async def test_no_step_is_lost_to_kill_9_nor_applied_twice(new_seat, store_url, truth, seed):
    """At random moments of streams, unary steps, frames and priming: the bits of an uninterrupted run."""
    chance = random.Random(seed)
    seat = new_seat("--store", store_url, "--checkpoint-interval-seconds", "0.1")
    await seat.start()
    async with Load(seat.listen, truth, seed, kinds=(*KINDS, DurableStepper)) as load:
        await load.everyone_moves()
        for number in range(NUM_KILLS):
            if number % 2:
                await load.everyone_moves()
            await asyncio.sleep(chance.uniform(0, LONGEST_LIFE_SECONDS))
            await seat.kill()
            await seat.start()
        await load.everyone_moves()


@every_front("grpcio")
async def test_streams_go_on_when_a_worker_is_killed(new_seat, truth):
    """Workers keep sessions in a store of the server's own, though none was asked for."""
    seat = new_seat("--workers", "2", "--checkpoint-interval-seconds", "0.1")
    await seat.start()
    async with Load(seat.listen, truth, 2, num_each=4, kinds=(Streamer,), gateway=0) as load:
        for number in range(NUM_WORKERS_KILLED):
            await load.everyone_moves(50)
            workers = children(seat.server.process.pid)
            os.kill(workers[number % len(workers)], signal.SIGKILL)
            await asyncio.to_thread(seat.server.event, "worker_restarted")
        await load.everyone_moves(50)
