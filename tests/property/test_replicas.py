"""Two servers over one store, with crashes, a store that comes and goes, jumping clocks: never a wrong bit.

The input of step i of a session is always the same, so the reply to step i must have the bits of the session
computed alone, whichever server answers. A client that gives no index relies on its own count, on whichever
server: no reply may contradict the count. Steps that were reported as stored are there for the next owner.
"""

import asyncio
import functools

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from streamcell.v1 import streamcell_pb2 as pb

from service.engine import snapshot
from service.persistence import asking, hand_over
from service.rpc.statuses import RefusedError
from service.runtime.runner import Runner
from tests import fakes
from tests.fake_store import FakeStore
from tests.fakes import Alone, Refusal, Served, bits

X = np.random.default_rng(8).standard_normal((200, 2)).astype(np.float32)
MAX_SESSIONS = 8
NAMES = st.sampled_from("ab")
SERVERS = st.integers(0, 1)
# A server's refusals while its store is gone, or for a session that the other server owns.
EXPECTED = {"STORE_UNAVAILABLE", "SESSION_FENCED", "STEP_GAP", "STEP_FORGOTTEN", "SESSION_NOT_FOUND"}


@functools.cache
def model():
    """Returns the model, scripted once."""
    return fakes.recurrence()


@functools.cache
def runners():
    """Returns a runner for each server and its successors; states stay as the server before left them."""
    return [Runner(model(), MAX_SESSIONS) for _ in range(2)]


@functools.cache
def replies():
    """Returns every prediction of a session, computed alone."""
    alone = Alone(model())
    return [alone.step(row) for row in X]


class Clock:
    """Monotonic nanoseconds that a test moves on; the loop's timers run in real time."""

    def __init__(self):
        self.now_ns = 1

    def __call__(self):
        """Returns the time, a little later each time."""
        self.now_ns += 1_000
        return self.now_ns


class Replicas(RuleBasedStateMachine):
    """Two servers, and what their clients know."""

    @initialize()
    def begin(self):
        """Starts both servers."""
        self.loop = asyncio.Runner()
        self.rows, self.asked = {}, {}
        self.clock = Clock()
        self.servers = [self.run(self.start(runner)) for runner in runners()]
        self.counts = {}  # by session: how many steps its client has replies to
        self.stored = {}  # by session: how many steps were reported as stored
        self.alive = set()

    def run(self, awaitable):
        """Runs a coroutine to its end, within 30 seconds."""
        return self.loop.run(asyncio.wait_for(awaitable, 30))

    async def start(self, runner):
        """Returns a server over the rows; it writes only when the test says so."""
        store = FakeStore(self.rows, asked=self.asked)
        served = Served(
            model(),
            runner=runner,
            store=store,
            clock=self.clock,
            checkpoint_interval_seconds=1000,
            session_ttl_seconds=0,
            max_resident_sessions=MAX_SESSIONS,
        )
        served.store = store
        await served.write_behind.start()
        return served

    def ask(self, number, name, request):
        """Returns a reply, or one of the expected refusals."""
        try:
            return self.run(self.servers[number].ask(name, request))
        except RefusedError as error:
            refusal = Refusal.of(error.status)
            assert refusal.reason in EXPECTED, refusal
            return refusal

    @rule(number=SERVERS, name=NAMES)
    def open(self, number, name):
        """Opens a session, or resumes it at or after the last stored step."""
        found = self.ask(number, "OpenSession", pb.OpenSessionRequest(session_id=name))
        if isinstance(found, Refusal):
            assert found.reason == "STORE_UNAVAILABLE"
            return
        next_step = found.session.next_step_index
        # A server without its store knows the session only from its own memory.
        assert next_step >= self.stored.get(name, 0) or self.servers[number].store.trouble
        assert found.created == (name not in self.alive)
        self.alive.add(name)
        if not self.is_outdated(number, name):
            self.counts[name] = next_step

    @rule(number=SERVERS, name=NAMES, back=st.integers(0, 1))
    def step_with_index(self, number, name, back):
        """Sends the client's next step, or the one before it again."""
        index = max(self.counts.get(name, 0) - back, 0)
        found = self.ask(number, "Step", pb.StepRequest(session_id=name, x=X[index], step_index=index))
        if not isinstance(found, Refusal):
            self.alive.add(name)
            self.check(number, name, index, found)
        elif "expected_step_index" in found.metadata:  # the refusal has the session's next step
            next_step = int(found.metadata["expected_step_index"])
            if not self.is_outdated(number, name):
                assert next_step >= self.stored.get(name, 0)
                self.counts[name] = next_step

    @rule(number=SERVERS, name=NAMES)
    def step_without_index(self, number, name):
        """Sends the next input without an index: the reply is of the client's next step, or an error.

        Not to a server that lost the session and has not written since, because its replies will not last.
        Nor where the owner died with steps that it had not stored: the reply's index would tell.
        """
        if self.is_outdated(number, name) or self.has_lost_steps(number, name):
            return
        index = self.counts.get(name, 0)
        found = self.ask(number, "Step", pb.StepRequest(session_id=name, x=X[index]))
        if not isinstance(found, Refusal):
            self.check(number, name, index, found)

    def is_outdated(self, number, name):
        """Returns whether a server has a session in memory that another server owns by now."""
        engine, row = self.servers[number].engines[0], self.rows.get(f"\0{name}")
        slot = engine.sessions.find(f"\0{name}")
        if slot is None or row is None:
            return False
        owner = self.servers[number].store.owner
        return (owner, engine.sessions.ownership.epoch[slot]) != (row.owner, row.epoch)

    def has_lost_steps(self, number, name):
        """Returns whether a server would go on from a row that lacks steps of a dead owner."""
        key = f"\0{name}"
        row = self.rows.get(key)
        is_here = self.servers[number].engines[0].sessions.find(key) is not None
        if is_here or row is None or row.owner in self.asked:
            return False
        return snapshot.decode(row.record).progress.next_step[0] < self.counts.get(name, 0)

    def check(self, number, name, index, reply):
        """Compares a reply with the session alone; replies of an outdated server do not count."""
        assert reply.step_index == index
        assert bits(reply.y) == replies()[index]
        if self.is_outdated(number, name):
            return
        self.counts[name] = max(self.counts.get(name, 0), index + 1)
        self.stored[name] = max(self.stored.get(name, 0), reply.num_durable_steps)

    @rule(number=SERVERS)
    def checkpoint(self, number):
        """Writes what changed on a server."""
        write_behind = self.servers[number].write_behind
        self.run(write_behind._write(everything=True))

    @rule(number=SERVERS)
    def crash(self, number):
        """Ends a server without a drain, and starts another one in its place."""
        self.run(self.servers[number].write_behind.abandon())
        self.servers[number] = self.run(self.start(runners()[number]))

    @rule(number=SERVERS)
    def drain(self, number):
        """Drains a server, which stores and releases its sessions, and starts another one in its place."""
        self.run(self.servers[number].write_behind.stop())
        self.servers[number] = self.run(self.start(runners()[number]))

    @rule(number=SERVERS, is_gone=st.booleans())
    def store_comes_and_goes(self, number, is_gone):
        """Disconnects a server from the store, or connects it again."""
        served = self.servers[number]
        served.store.trouble = "cut off" if is_gone else ""
        self.run(served.write_behind._probe() if not is_gone else served.write_behind._write(everything=True))

    @rule(nanoseconds=st.sampled_from([10**6, 10**12, 10**17]))
    def clock_jumps(self, nanoseconds):
        """Moves time on, by up to three years."""
        self.clock.now_ns += nanoseconds

    @invariant()
    def owned_once(self):
        """At most one server owns a session, at the epoch of the row in the store."""
        for key, row in getattr(self, "rows", {}).items():
            has = [served.engines[0].sessions.find(key) is not None for served in self.servers]
            owns = [has[number] and not self.is_outdated(number, key[1:]) for number in range(2)]
            assert sum(owns) <= 1, row

    def teardown(self):
        """Ends both servers."""
        if hasattr(self, "servers"):
            for served in self.servers:
                self.run(served.write_behind.abandon())
            self.loop.close()


def test_replicas(monkeypatch):
    """Servers ask each other for sessions, and do not wait long where one cannot answer."""
    monkeypatch.setattr(asking, "_ANSWER_SECONDS", 0.02)
    monkeypatch.setattr(asking, "_PATIENCE_SECONDS", 0.02)
    monkeypatch.setattr(hand_over, "_LEAST_STAY_SECONDS", 0)
    bounds = settings(max_examples=100, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(Replicas, settings=bounds)
