"""Requests that wait for sessions: who waits for whom, and in which order they go on."""

import asyncio

from service.servicers.streamcell.pending import PendingRequests


def held(*entries):
    """Returns requests held, as pairs of their sessions and their name."""
    waiting = PendingRequests()
    for session_ids, name in entries:
        waiting.add(session_ids, name)
    return waiting


def test_a_request_waits_behind_one_of_its_sessions_alone():
    """Others are not held up."""
    waiting = held(("ab", "first"), ("c", "second"))
    assert waiting.must_wait(["b"])
    assert waiting.must_wait(["x", "c"])
    assert not waiting.must_wait(["x"])
    assert len(waiting) == 2


def test_a_request_of_unknown_sessions_holds_up_all_and_waits_for_all():
    """One that gives numbers, which others may use."""
    assert not PendingRequests().must_wait(None)
    assert held(("a", "first")).must_wait(None)
    assert held((None, "configuration")).must_wait(["x"])


def test_all_are_taken_out_in_order():
    """And may be added again as they were."""
    waiting = held(("a", 1), ("b", 2), ("a", 3))
    taken = waiting.pop_all()
    assert [each.request for each in taken] == [1, 2, 3]
    assert not waiting
    assert not waiting.must_wait(None)
    waiting.put_back(taken[1])
    assert waiting.must_wait(["b"])


async def test_those_given_up_are_cancelled():
    """What brings their sessions ends too."""
    waiting = PendingRequests()
    entry = waiting.add("a", 1)
    waiting.add("a", 2)
    entry.fetching = asyncio.create_task(asyncio.Event().wait())
    waiting.cancel()
    assert not waiting
    await asyncio.wait([entry.fetching])
    assert entry.fetching.cancelled()
