"""Clients that send steps until the load ends, and then check every answer.

Each client drives one session with the client library, as an application does: by a stream, by unary steps,
by priming. All random choices of a load come from its seed.
"""

import asyncio
import random

import numpy as np
from streamcell import Client, Limits

from tests.e2e.conftest import BOUND_SECONDS
from tests.e2e.survival.fleet import MODEL
from tests.e2e.survival.gateway import Gateway
from tests.integration.conftest import folded, inputs

MAX_STEPS = 400_000  # of one client
PACE_SECONDS = 0.002  # before each step of a client: servers that start at the same time need the cores too


class LoadClient:
    """A session, its inputs and its answers; `drive` sends steps until the load ends."""

    is_durable = False
    limits = Limits()

    def __init__(self, load, seed):
        self.load = load
        self.chance = random.Random(seed)
        self.name = f"{type(self).__name__} of seed {seed}"
        self.session_ids = [f"{type(self).__name__}-{seed}"]
        self.x = inputs(seed, MAX_STEPS)
        self.num_sent = 0
        self.answers = []  # (step index, prediction)

    @property
    def num_answered(self):
        """How many answers there are."""
        return len(self.answers)

    async def run(self):
        """Drives a session, and checks that the session stands after the last step that was sent."""
        (session_id,) = self.session_ids
        async with (
            Client(self.load.target, limits=self.limits) as client,
            client.session(model=MODEL, session_id=session_id, durable=self.is_durable, keep=True) as session,
        ):
            await self.drive(session)
            assert (await session.refresh()).next_step_index == self.num_sent, self.name

    def rows(self, count):
        """Returns the next inputs."""
        self.num_sent += count
        return self.x[self.num_sent - count : self.num_sent]

    def record(self, prediction):
        """Records an answer."""
        self.answers.append((prediction.step_index, prediction.y))
        self.load.notify()

    def check(self, model):
        """Compares every answer with an uninterrupted run."""
        indexes = [index for index, _ in self.answers]
        y = np.array([y for _, y in self.answers], np.float32)
        assert indexes == self.due_indexes(), self.name
        assert np.array_equal(y, folded(model, self.x[: self.num_sent])[indexes]), self.name

    def due_indexes(self):
        """Returns the indexes of the answers that there must be: each step once, in order."""
        return list(range(self.num_sent))


class Streamer(LoadClient):
    """A client with one stream."""

    async def drive(self, session):
        """Streams rows, some ahead of the answers."""

        async def rows():
            while await self.load.may_continue():
                yield self.rows(1)[0]

        async for prediction in session.stream(rows()):
            self.record(prediction)


class Stepper(LoadClient):
    """A client with unary steps."""

    async def drive(self, session):
        """Sends one step after another."""
        while await self.load.may_continue():
            self.record(await session.step(self.rows(1)[0]))


class DurableStepper(Stepper):
    """A client that cannot send steps again: the store must have each step once it is answered."""

    is_durable = True
    limits = Limits(tail_steps=1)


class Primer(LoadClient):
    """A client that primes histories of several lengths, with single steps in between."""

    def __init__(self, load, seed):
        super().__init__(load, seed)
        self._due = []

    async def drive(self, session):
        """Primes and steps in turn."""
        while await self.load.may_continue():
            rows = self.rows(self.chance.choice((1, 7, 40, 300)))
            self._due.append(self.num_sent - 1)
            self.record(await session.prime(rows))
            for _ in range(12):
                self._due.append(self.num_sent)
                self.record(await session.step(self.rows(1)[0]))

    def due_indexes(self):
        """Returns the last index of each history, and the index of each single step."""
        return self._due


KINDS = (Streamer, Stepper, Primer)


class Load:
    """Clients of every kind on one target. Use with `async with`: the end of the block checks all answers.

    Args:
        model: the artifact, to compute the right answers.
        num_each: how many clients of each kind there are.
        gateway: how many sessions the gateway has; 0: there is no gateway.
    """

    def __init__(self, target, model, seed, *, num_each=2, kinds=KINDS, gateway=8):
        self.target = target
        self.is_running = True
        self._model = model
        self._answered = asyncio.Event()
        seeds = iter(range(1000 * seed, 1000 * (seed + 1)))
        self.clients = [kind(self, next(seeds)) for kind in kinds for _ in range(num_each)]
        if gateway:
            self.clients.append(Gateway(self, [next(seeds) for _ in range(gateway)]))
        self._running = []

    @property
    def session_ids(self):
        """The ids of all clients' sessions, which stay open."""
        return [session_id for client in self.clients for session_id in client.session_ids]

    async def __aenter__(self):
        self._running = [asyncio.create_task(client.run()) for client in self.clients]
        for task in self._running:
            task.add_done_callback(self.notify)
        return self

    async def __aexit__(self, kind, error, trace):
        self.is_running = False
        if error is None:
            await asyncio.wait_for(asyncio.gather(*self._running), BOUND_SECONDS)
            self._check()
            return
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def may_continue(self):
        """Waits for the time of the next step; returns whether the load still runs then."""
        await asyncio.sleep(PACE_SECONDS)
        return self.is_running

    def notify(self, *_):
        """Wakes `all_answered`: there is an answer, or a client has ended."""
        self._answered.set()

    async def all_answered(self, num_answers=1):
        """Returns when every client has so many more answers; raises the error that ended a client."""
        waiting = {client: client.num_answered + num_answers for client in self.clients}
        try:
            async with asyncio.timeout(2 * BOUND_SECONDS):
                while waiting := {each: n for each, n in waiting.items() if each.num_answered < n}:
                    self._answered.clear()
                    for task in self._running:
                        if task.done():
                            task.result()
                    await self._answered.wait()
        except TimeoutError:
            raise AssertionError(f"not answered: {[each.name for each in waiting]}") from None

    def _check(self):
        for client in self.clients:
            client.check(self._model)
