"""Requests that wait for sessions: who waits for whom, and in which order they go on."""

import asyncio

from service.servicers.streamcell.pending import Held


def held(*entries):
    """Returns requests held, as pairs of their sessions and their name."""
    waiting = Held()
    for session_ids, name in entries:
        waiting.add(session_ids, name)
    return waiting


def test_a_request_waits_behind_one_of_its_sessions_alone():
    """Others are not held up."""
    waiting = held(("ab", "first"), ("c", "second"))
    assert waiting.holds(["b"])
    assert waiting.holds(["x", "c"])
    assert not waiting.holds(["x"])
    assert len(waiting) == 2


def test_a_request_of_unknown_sessions_holds_up_all_and_waits_for_all():
    """One that gives numbers, which others may use."""
    assert not Held().holds(None)
    assert held(("a", "first")).holds(None)
    assert held((None, "configuration")).holds(["x"])


def test_all_are_taken_out_in_order():
    """And may be added again as they were."""
    waiting = held(("a", 1), ("b", 2), ("a", 3))
    taken = waiting.take_all()
    assert [each.request for each in taken] == [1, 2, 3]
    assert not waiting
    assert not waiting.holds(None)
    waiting.add_again(taken[1])
    assert waiting.holds(["b"])


async def test_those_given_up_are_cancelled():
    """What brings their sessions ends too."""
    waiting = Held()
    entry = waiting.add("a", 1)
    waiting.add("a", 2)
    entry.bringing = asyncio.create_task(asyncio.Event().wait())
    waiting.cancel()
    assert not waiting
    await asyncio.wait([entry.bringing])
    assert entry.bringing.cancelled()
