"""Sessions of servers with a store: requests that the tests send, and conditions that they wait for."""

import asyncio

import numpy as np
from streamcell.v1 import streamcell_pb2 as pb

from tests import fakes

X = np.random.default_rng(6).standard_normal((40, 2)).astype(np.float32)
BOUND_SECONDS = 60.0  # for what never takes long: a hang fails here, with a name


def step(session_id="s", row=0, **fields):
    """Returns a step request with a row of X."""
    return pb.StepRequest(session_id=session_id, x=X[row], **fields)


async def until(condition):
    """Waits until a condition is true, for a bounded time."""
    async with asyncio.timeout(BOUND_SECONDS):
        while not condition():
            await fakes.turn()


async def until_stored(served, session_id="s", num_steps=0):
    """Waits until so many steps of a session are in the store."""
    sessions = served.engines[0].sessions
    await until(lambda: sessions.durability.num_durable[sessions.find(f"\0{session_id}")] >= num_steps)


async def resume(served, session_id="s"):
    """Opens a session that exists, and returns where it stands."""
    request = pb.OpenSessionRequest(session_id=session_id, mode=pb.OPEN_MODE_RESUME)
    return (await served.ask("OpenSession", request)).session
