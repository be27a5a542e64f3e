"""Clients that go on until they are told to stop, and know afterwards whether every answer was right.

Each drives one session by the client library, as applications do: by a stream, by unary steps, by priming.
All of the load's chance comes from its seed.
"""

import asyncio
import random

import numpy as np
from streamcell import Client, Limits

from tests.e2e.survival.fleet import MODEL
from tests.e2e.survival.gateway import Gateway
from tests.integration.conftest import BOUND_SECONDS, folded, inputs

MAX_STEPS = 400_000  # of one client
PACE_SECONDS = 0.002  # before each step of a client: servers that start beside them need the cores, too


class Player:
    """A session, its inputs, and what was answered; `drive` goes on until the load ends."""

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
        """How many answers there were."""
        return len(self.answers)

    async def play(self):
        """Drives a session, and makes sure that it stands where the answers ended."""
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

    def take(self, prediction):
        """Takes an answer."""
        self.answers.append((prediction.step_index, prediction.y))
        self.load.tell()

    def check(self, model):
        """Compares every answer with what an uninterrupted run gives."""
        indexes = [index for index, _ in self.answers]
        y = np.array([y for _, y in self.answers], np.float32)
        assert indexes == self.due_indexes(), self.name
        assert np.array_equal(y, folded(model, self.x[: self.num_sent])[indexes]), self.name

    def due_indexes(self):
        """Returns the indexes that must have been answered: each one once, and in order."""
        return list(range(self.num_sent))


class Streamer(Player):
    """One stream for all of it."""

    async def drive(self, session):
        """Streams rows, some ahead of the answers."""

        async def rows():
            while await self.load.goes_on_in_time():
                yield self.rows(1)[0]

        async for prediction in session.stream(rows()):
            self.take(prediction)


class Stepper(Player):
    """Unary steps."""

    async def drive(self, session):
        """Takes step after step."""
        while await self.load.goes_on_in_time():
            self.take(await session.step(self.rows(1)[0]))


class DurableStepper(Stepper):
    """Unary steps that the store must have once they are answered: this client could not send them again."""

    is_durable = True
    limits = Limits(tail_steps=1)


class Primer(Player):
    """Histories of any length, with single steps in between."""

    def __init__(self, load, seed):
        super().__init__(load, seed)
        self._due = []

    async def drive(self, session):
        """Primes and steps in turn."""
        while await self.load.goes_on_in_time():
            rows = self.rows(self.chance.choice((1, 7, 40, 300)))
            self._due.append(self.num_sent - 1)
            self.take(await session.prime(rows))
            for _ in range(12):
                self._due.append(self.num_sent)
                self.take(await session.step(self.rows(1)[0]))

    def due_indexes(self):
        """Returns the last indexes of the histories, and those of the steps."""
        return self._due


KINDS = (Streamer, Stepper, Primer)


class Load:
    """Clients of every kind on one target, used with `async with`; leaving it in peace checks their answers.

    Args:
        model: the artifact that tells what is right.
        num_each: clients of each kind.
        gateway: sessions of one gateway; 0: there is none.
    """

    def __init__(self, target, model, seed, *, num_each=2, kinds=KINDS, gateway=8):
        self.target = target
        self.goes_on = True
        self._model = model
        self._told = asyncio.Event()
        seeds = iter(range(1000 * seed, 1000 * (seed + 1)))
        self.players = [kind(self, next(seeds)) for kind in kinds for _ in range(num_each)]
        if gateway:
            self.players.append(Gateway(self, [next(seeds) for _ in range(gateway)]))
        self._playing = []

    @property
    def session_ids(self):
        """The sessions of all clients; they are left open."""
        return [session_id for player in self.players for session_id in player.session_ids]

    async def __aenter__(self):
        self._playing = [asyncio.create_task(player.play()) for player in self.players]
        for task in self._playing:
            task.add_done_callback(self.tell)
        return self

    async def __aexit__(self, kind, error, trace):
        self.goes_on = False
        if error is None:
            await asyncio.wait_for(asyncio.gather(*self._playing), BOUND_SECONDS)
            self._check()
            return
        for task in self._playing:
            task.cancel()
        await asyncio.gather(*self._playing, return_exceptions=True)

    async def goes_on_in_time(self):
        """Tells whether to go on, when it is time for the next step."""
        await asyncio.sleep(PACE_SECONDS)
        return self.goes_on

    def tell(self, *_):
        """Tells whoever waits that something was answered."""
        self._told.set()

    async def everyone_moves(self, num_answers=1):
        """Returns when every client was answered so often from now on; raises what ended one of them."""
        waiting = {player: player.num_answered + num_answers for player in self.players}
        try:
            async with asyncio.timeout(2 * BOUND_SECONDS):
                while waiting := {each: n for each, n in waiting.items() if each.num_answered < n}:
                    self._told.clear()
                    for task in self._playing:
                        if task.done():
                            task.result()
                    await self._told.wait()
        except TimeoutError:
            raise AssertionError(f"not answered: {[each.name for each in waiting]}") from None

    def _check(self):
        for player in self.players:
            player.check(self._model)
