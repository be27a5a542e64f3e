"""The channel between a supervisor and a worker process."""

import asyncio
import contextlib
import socket

import pytest

from service.processes.control import VARIABLE, Channel

BOUND_SECONDS = 60.0


@pytest.fixture
async def ends():
    """Both ends of a channel; the second is made from a worker's environment."""
    ours, theirs = socket.socketpair()
    environment = {VARIABLE: str(theirs.detach())}
    async with contextlib.AsyncExitStack() as open_ends:
        channels = [await Channel.of(ours), await Channel.inherited(environment)]
        for channel in channels:
            open_ends.push_async_callback(channel.close)
        yield channels


async def receive(channel):
    """Returns the next message, in a bounded time."""
    return await asyncio.wait_for(channel.receive(), BOUND_SECONDS)


async def test_messages_arrive_in_order_in_both_directions(ends):
    """A page of metrics is one message, however many lines it has."""
    ours, theirs = ends
    ours.send(order="page")
    ours.send(order="drain")
    theirs.send(event="page", page="a line\n" * 100_000)
    assert [await receive(theirs) for _ in range(2)] == [{"order": "page"}, {"order": "drain"}]
    assert await receive(ours) == {"event": "page", "page": "a line\n" * 100_000}


async def test_the_end_of_a_channel_is_the_end_of_the_other_process(ends):
    """Messages sent before still arrive; messages sent afterwards are dropped."""
    ours, theirs = ends
    theirs.send(event="drain", clean=True)
    await theirs.close()
    theirs.send(event="page", page="late")
    assert await receive(ours) == {"event": "drain", "clean": True}
    assert await receive(ours) is None
    assert await receive(ours) is None


async def test_a_line_that_is_cut_short_is_no_message():
    """The other process may end in the middle of a message."""
    ours, theirs = socket.socketpair()
    channel = await Channel.of(ours)
    with theirs:
        theirs.sendall(b'{"event": "dr')
    assert await receive(channel) is None
    await channel.close()
