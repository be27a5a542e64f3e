"""Random interleavings of calls with crashes, fences, drains and a store that lags.

Two servers over one store, one client of both. Whatever happens to them, the caller gets what it would have
got from a server to which nothing ever happens, and the session's last state is made of each step once.
"""

import asyncio
import contextlib

from fake_store import FakeStore
from fake_streamcell import FakeServer, FakeTime, broken, expected, overloaded, store_unavailable
from hypothesis import given, settings
from hypothesis import strategies as st
from streamcell import Client, Limits, RetryPolicy, Sources, Timeout

BOUND_SECONDS = 60
EVENTS = (
    "nothing", "nothing", "nothing", "break", "crash", "quiet crash", "both crash", "fence", "drain",
    "refuse", "save",
)  # fmt: skip
CALLS = ("step", "prime", "stream", "forecast", "refresh", "reset")

PLANS = st.fixed_dictionaries({
    "calls": st.lists(st.tuples(st.sampled_from(CALLS), st.integers(1, 12)), min_size=3, max_size=8),
    # What happens as the n-th step comes to a server, and whether before or after it is applied.
    "events": st.lists(st.tuples(st.sampled_from(EVENTS), st.booleans()), min_size=20, max_size=60),
    "has_store": st.booleans(),
    "stores_resets": st.booleans(),
    "lag_steps": st.none() | st.integers(0, 15),
    "message_steps": st.integers(1, 10),
    "num_replies": st.integers(1, 8),
})  # fmt: skip


class World:
    """The servers, and what happens to them."""

    def __init__(self, plan):
        self.events = list(plan["events"])
        # Without a store a session cannot go from one server to another, so there is just one.
        self.store = FakeStore(plan["lag_steps"]) if plan["has_store"] else None
        self.servers = [FakeServer(self.store) for _ in range(2 if plan["has_store"] else 1)]
        for server in self.servers:
            server.num_replies = plan["num_replies"]
            server.stores_resets = plan["stores_resets"]
            server.before = self._hook(server, is_after=False)
            server.after = self._hook(server, is_after=True)

    @property
    def target(self):
        """Both, as a client names them."""
        return ",".join(server.target for server in self.servers)

    def _hook(self, server, *, is_after):
        async def hook(request):
            if self.events and self.events[0][1] is is_after:
                event, _ = self.events.pop(0)
                self._happen(event, server, request.session_id)

        return hook

    def _happen(self, event, server, session_id):
        if event == "quiet crash" and server.stores_resets:
            server.crash()  # as a proxy would have it that keeps the call and tries the next server
        elif event in ("break", "crash", "quiet crash", "both crash"):
            for crashed in {"break": [], "both crash": self.servers}.get(event, [server]):
                crashed.crash()
            raise broken()
        elif event == "refuse":
            raise store_unavailable() if self.store else overloaded(0.5)
        elif self.store is not None and session_id in self.store.rows:
            self._happen_to_store(event, server, session_id)

    def _happen_to_store(self, event, server, session_id):
        if event == "fence":
            server.fence(session_id)
        elif event == "drain":
            server.drain()
            for other in self.servers:  # a successor takes the place of a server that drained before
                other.is_draining = other is server
        elif event == "save" and session_id in server.sessions:
            session = server.sessions[session_id]
            self.store.write(session, server._owner, len(session.applied))


async def drive(world, client, calls):
    """Makes the calls, checks every answer, and returns the rows applied since the last reset."""
    rows: list[list[float]] = []
    async with client.session(session_id="mine", keep=True) as session:
        for number, (call, count) in enumerate(calls):
            fresh = [[float(number * 100 + step)] for step in range(count)]
            if call == "reset":
                await session.reset()
                rows = []
            elif call == "refresh":
                assert (await session.refresh()).next_step_index == len(rows)
            elif call == "forecast":
                if rows:
                    assert (await session.forecast(count))[0][0] == expected(rows)[-1]
            else:
                rows += fresh
                got = await feed(session, call, fresh)
                assert got == list(enumerate(expected(rows)))[-len(got) :]
            assert session.next_step_index == len(rows)
        world.events.clear()
        assert (await session.refresh()).next_step_index == len(rows)
    return rows


async def feed(session, call, rows):
    """Index and value of each prediction for the rows."""
    if call == "prime":
        replies = [await session.prime(rows)]
    elif call == "step":
        replies = [await session.step(row) for row in rows]
    else:
        replies = [reply async for reply in session.stream(rows)]
        assert len(replies) == len(rows)
    return [(reply.step_index, reply.y[0]) for reply in replies]


async def live_through(plan):
    """Runs a plan from start to end."""
    world, time = World(plan), FakeTime()
    sources = Sources(now=time.now, sleep=time.sleep, uniform=lambda low, high: 0.0)
    retry = RetryPolicy(max_attempts=100, initial_delay_seconds=0.001)
    limits = Limits(message_steps=plan["message_steps"])
    async with contextlib.AsyncExitStack() as stack:
        for server in world.servers:
            await server.start()
            stack.push_async_callback(server.stop)
        client = Client(world.target, retry=retry, limits=limits, sources=sources, timeout=Timeout())
        rows = await drive(world, await stack.enter_async_context(client), plan["calls"])
        found = [server.sessions["mine"] for server in world.servers if "mine" in server.sessions]
        # One of them may be a server that does not know yet that it was fenced.
        assert rows in [[x for x, _, _ in session.applied] for session in found]


@settings(max_examples=100, deadline=None)
@given(PLANS)
def test_whatever_happens_the_caller_sees_an_uninterrupted_run(plan):
    """Each prediction once, in order, with the value of a run in which nothing happened."""
    asyncio.run(asyncio.wait_for(live_through(plan), BOUND_SECONDS))
