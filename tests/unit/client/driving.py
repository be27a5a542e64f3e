"""How the tests drive a session: they read a stream to its end, feed rows live, cancel a call."""

import asyncio

import pytest


async def values(stream):
    """Returns the first outputs of a stream's predictions, after checking that their indexes have no gap."""
    replies = [reply async for reply in stream]
    first = replies[0].step_index if replies else 0
    assert [reply.step_index for reply in replies] == list(range(first, first + len(replies)))
    return [reply.y[0] for reply in replies]


async def until_none(queue):
    """Yields rows from a queue as they arrive; None ends them."""
    while (row := await queue.get()) is not None:
        yield row


async def cancel_once(event, call):
    """Starts a call and cancels it as soon as the event is set."""
    task = asyncio.create_task(call)
    await event.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
