"""Several servers over one store: the client moves to the next when its server goes."""

import asyncio

import pytest
import streamcell
from fake_store import FakeStore
from fake_streamcell import FakeServer, Gate, broken, draining, expected, once

ROWS = [[float(value)] for value in range(1, 21)]


@pytest.fixture
async def servers():
    """Two fake servers over one store."""
    store = FakeStore(lag_steps=3)
    pair = FakeServer(store), FakeServer(store)
    for server in pair:
        await server.start()
    yield pair
    for server in pair:
        await server.stop()


@pytest.fixture
async def client(connect, servers):
    """A client of both."""
    async with connect(target=",".join(server.target for server in servers)) as both:
        yield both


def at_once(server, index, act):
    """Makes a server act once, when a step arrives."""

    async def hook(request):
        if request.step_index == index:
            server.before = once()
            await act()

    server.before = hook


async def drain(server):
    """Drains a server."""
    server.drain()


async def stop(server):
    """Ends a server's process."""
    await server.stop()


@pytest.mark.parametrize("leave", [drain, stop])
async def test_a_stream_goes_on_at_the_next_target(client, servers, leave):
    """A server that drains or dies is left; the next takes the session over and gets what it lacks."""
    first, second = servers
    left = asyncio.Event()

    async def act():
        task = asyncio.create_task(leave(first))
        task.add_done_callback(lambda done: left.set())
        await left.wait()

    at_once(first, 10, act)
    async with client.session(session_id="mine") as session:
        got = [reply.y[0] async for reply in session.stream(ROWS)]
        assert got == expected(ROWS)
        assert [x for x, _, _ in second.sessions["mine"].applied] == ROWS


async def test_a_draining_server_that_answers_is_not_asked_again(client, servers):
    """It refuses one call as DRAINING; the next server gets all later calls."""
    first, second = servers
    async with client.session(session_id="mine") as session:
        await session.step([1.0])
        num_calls = len(first.calls)
        first.drain()
        for _ in range(5):
            await session.step([1.0])
        assert len(first.calls) == num_calls + 1
        assert len(second.named("Step")) == 5


async def test_the_first_target_that_is_there_is_used(connect, servers):
    """While the first server is down, the second opens a session and lists the models."""
    first, second = servers
    await first.stop()
    target = f"{first.target},{second.target}"
    async with connect(target=target) as fresh:
        assert len(await fresh.models()) == 1
    async with connect(target=target) as fresh, fresh.session() as session:
        assert (await session.step([1.0])).step_index == 0


async def test_targets_are_tried_in_turn_until_one_answers(client, servers, fake_time):
    """After the last server comes the first again, which may be back by then."""
    first, second = servers
    async with client.session(session_id="mine") as session:
        await session.step([1.0])
        await first.stop()
        await second.stop()

        async def restart():
            fake_time.on_sleep = None
            first.crash()
            await first.start()

        fake_time.on_sleep = restart
        assert (await session.step([2.0])).y == (2.5, 1.0)


async def test_without_any_server_the_connection_is_lost(client, servers):
    """When the policy ends, the caller gets the error of the last attempt."""
    async with client.session(session_id="mine") as session:
        for server in servers:
            await server.stop()
        with pytest.raises(streamcell.ConnectionLost):
            await session.step([1.0])


async def test_sessions_that_lose_their_server_at_once_move_once(client, servers):
    """All sessions go on at the next target; none leaves that target because of the others."""
    first, second = servers
    sessions = [await client.session(session_id=f"s{number}").__aenter__() for number in range(6)]
    await asyncio.gather(*(session.step([1.0]) for session in sessions))
    num_calls = len(first.calls)
    first.drain()
    replies = await asyncio.gather(*(session.step([1.0]) for session in sessions))
    assert [reply.y for reply in replies] == [(1.5, 1.0)] * 6
    assert len(first.calls) - num_calls <= 6
    assert len(second.sessions) == 6


async def test_a_lost_reply_moves_to_the_next_target(client, servers):
    """The server that lost the reply may be ill, so it is left; the step is applied once all the same."""
    first, second = servers
    async with client.session(session_id="mine") as session:
        await session.step([1.0])
        first.after = once(broken())
        assert (await session.step([1.0])).y == (1.5, 1.0)
        assert len(second.named("Step")) == 1
        assert len(second.sessions["mine"].applied) == 2


async def test_a_single_target_that_drains_is_left_for_a_fresh_connection(connect, server):
    """The old connection would lead to the same server for ever; a new one leads to its successor."""
    async with connect() as client, client.session(session_id="mine") as session:
        await session.step([1.0])
        server.before_call["Step"] = once(draining())
        await session.step([1.0])
    peers = dict(zip(server.peers, (method for method, _ in server.calls), strict=True))
    assert len(peers) == 2


async def test_calls_under_way_on_a_server_that_is_left_are_finished(client, servers):
    """The channel stays open until the last call has its reply."""
    first, second = servers
    gate = Gate()
    async with client.session(session_id="slow") as slow, client.session(session_id="other") as other:
        first.before_call["Step"] = gate
        task = asyncio.create_task(slow.step([1.0]))
        await gate.arrived.wait()
        first.before_call["Step"] = once(draining())
        await other.step([1.0])
        assert len(second.named("Step")) == 1
        gate.open()
        assert (await task).y == (1.0, 0.0)
        assert len(second.named("Step")) == 1
