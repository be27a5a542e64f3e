"""One seed from its plan to its end: puts the parts together, runs them, and says what went wrong.

The same seed gives the same trace, byte for byte: all chance comes from the seed, all time from the loop.
"""

import asyncio
import contextlib
import dataclasses
import os
import random

from streamcell import connection

from service.errors import Reason
from service.telemetry import faults, log
from tests.simulation import plan as plans
from tests.simulation import programs, raw
from tests.simulation.database import Database
from tests.simulation.loop import StuckError, VirtualLoop
from tests.simulation.network import PING_SECONDS, Host, Network
from tests.simulation.oracle import Oracle
from tests.simulation.planted import planted
from tests.simulation.scenario import Scenario
from tests.simulation.weather import Weather

_MAX_SECONDS = 200.0  # of virtual time, by which every client has finished
_EPOCH_SECONDS = 1.7e9
_CLIENTS = {
    "library": programs.Alone,
    "shared": programs.Shared,
    "plain": raw.Plain,
    "indexed": raw.Indexed,
    "frames": raw.Frames,
}


@dataclasses.dataclass
class Outcome:
    """How a seed ended: what went wrong, if anything, the trace, and how much was done."""

    seed: int
    failure: str
    lines: list[str]
    num_turns: int
    num_notes: int

    @property
    def summary(self):
        """One line, which says how to see it again."""
        return f"seed {self.seed}: {self.failure}\n  python -m tests.simulation --seed {self.seed} --trace"


class World:
    """Everything that one seed has."""

    ping_seconds = PING_SECONDS

    def __init__(self, seed, *, is_traced=False):
        self.seed = seed
        self.failure = ""
        self.lines = []
        self.num_notes = 0
        self._is_traced = is_traced
        self.skew_seconds = 0.0
        self.calm_at = float("inf")
        self.plan = plans.draw(self.seeded("plan"))
        self.loop = VirtualLoop(_MAX_SECONDS)
        self.weather = Weather()
        self.oracle = Oracle(self)
        self.database = Database(self.oracle.journal, self.loop.time)
        self.hosts = [Host(name) for name in self.plan.hosts]
        self.network = Network(self.loop, self.hosts, self.weather, self.seeded)
        self.servers = []

    def seeded(self, name):
        """Returns a source of chance, which depends on the seed and its name alone."""
        return random.Random(f"{self.seed} {name}")

    def wall(self):
        """Returns what the wall clock shows, Unix seconds."""
        return _EPOCH_SECONDS + self.loop.time() + self.skew_seconds

    def note(self, who, what):
        """Adds a line to the trace."""
        self.num_notes += 1
        if self._is_traced:
            self.lines.append(f"{self.loop.time():9.4f}  {who:<10} {what}")

    def fail(self, text):
        """Ends the seed as failed, for the first reason given."""
        if not self.failure:
            self.failure = text
            self.note("FAILED", text)
            self.loop.stop()

    @property
    def is_calm(self):
        """Whether all trouble is over."""
        return self.calm_at <= self.loop.time()

    def run(self):
        """Runs the seed; returns its outcome."""
        self.loop.set_exception_handler(self._on_exception)
        with _production(self):
            try:
                main = self.loop.create_task(self._main())
                self._run_until_done(main)
            finally:
                self._end()
        return Outcome(self.seed, self.failure, self.lines, self.loop.num_turns, self.num_notes)

    def _run_until_done(self, main):
        try:
            self.loop.run_until_complete(main)
        except StuckError as stuck:
            waiting = ", ".join(client.waits_for for client in self.clients if client.waits_for)
            self.fail(f"{stuck}: {waiting}")
        except RuntimeError:
            if not self.failure:
                raise
        except Exception as error:
            self.fail(f"{type(error).__name__}: {error}")
            if not self.failure:
                raise

    async def _main(self):
        self.clients = [
            _CLIENTS[kind](self, name, number) for number, (kind, name) in enumerate(self.plan.clients)
        ]
        scenario = Scenario(self)
        tasks = [asyncio.create_task(client.run()) for client in self.clients]
        await scenario.run()
        self.calm_at = self.loop.time()
        # After so long, a session that has not been used is written.
        seconds = 2 * self.plan.settings["checkpoint_interval_seconds"] + 1.2
        await asyncio.sleep(seconds)
        self.oracle.audit(seconds)
        await asyncio.gather(*tasks)
        await asyncio.sleep(seconds)
        self.oracle.audit(seconds)

    def _on_exception(self, loop, context):
        error = context.get("exception")
        # Of callers who went away, nobody takes the refusal.
        if "never retrieved" not in context["message"]:
            self.fail(f"{context['message']}: {error!r}")

    def _end(self):
        """Ends what still runs."""
        self.loop.end = float("inf")
        self.loop.num_turns = 0
        is_failed = bool(self.failure)
        self.failure = self.failure or " "  # what ends now is no fault
        self._is_traced = False
        for server in self.servers:
            if not server.is_dead:
                server.crash()
        for _ in range(3):
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            if left:
                with contextlib.suppress(Exception):
                    self.loop.run_until_complete(asyncio.wait(left, timeout=1.0))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        self.failure = self.failure if is_failed else ""


@contextlib.contextmanager
def _production(world):
    """Leads what the production code takes from outside to a world: channels, log, faults."""
    from service import errors

    def report(exception):
        world.fail(f"a fault was logged: {type(exception).__name__}: {exception}")
        return errors.refusal(Reason.INTERNAL, error_id="simulated")

    patches = [
        (connection, "open_channel", world.network.open_channel),
        (faults, "report", report),
        (os, "sched_yield", lambda: None),  # there is no other thread
        (log, "info", lambda event, **fields: world.note("log", f"{event} {fields}")),
        (log, "warning", lambda event, **fields: world.note("log", f"{event} {fields}")),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    for owner, name, value in patches:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def run(seed, *, is_traced=False, bug=""):
    """Runs a seed, with a bug planted if one is named; returns its outcome."""
    with planted(bug):
        return World(seed, is_traced=is_traced).run()


def failure_of(seed):
    """Runs a seed; returns what went wrong, and how to see it again; "" if nothing did."""
    outcome = run(seed)
    return outcome.summary if outcome.failure else ""


def find(bug, num_seeds):
    """Runs seeds with a bug planted until one fails; returns that seed's outcome, or None."""
    outcomes = (run(seed, bug=bug) for seed in range(num_seeds))
    return next((outcome for outcome in outcomes if outcome.failure), None)
