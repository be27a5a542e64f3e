"""Requests that wait for sessions: which wait for which, and in which order they go on."""

import asyncio

from service.servicers.streamcell.pending import PendingRequests


def pending_requests(*entries):
    """Returns pending requests, given as pairs of sessions and request."""
    pending = PendingRequests()
    for session_ids, request in entries:
        pending.add(session_ids, request)
    return pending


class TestMustWait:
    """Which requests wait for which."""

    def test_a_request_waits_behind_requests_of_its_sessions_only(self):
        """Requests of other sessions do not wait."""
        pending = pending_requests(("ab", "first"), ("c", "second"))
        assert pending.must_wait(["b"])
        assert pending.must_wait(["x", "c"])
        assert not pending.must_wait(["x"])
        assert len(pending) == 2

    def test_a_configuration_waits_for_all_and_all_wait_for_it(self):
        """It has no sessions of its own, and later requests use the numbers that it gives out."""
        assert not PendingRequests().must_wait(None)
        assert pending_requests(("a", "first")).must_wait(None)
        assert pending_requests((None, "configuration")).must_wait(["x"])


class TestPopAll:
    """Requests go on."""

    def test_entries_come_out_in_order(self):
        """A popped entry may be put back as it was."""
        pending = pending_requests(("a", 1), ("b", 2), ("a", 3))
        taken = pending.pop_all()
        assert [each.request for each in taken] == [1, 2, 3]
        assert not pending
        assert not pending.must_wait(None)
        pending.put_back(taken[1])
        assert pending.must_wait(["b"])


class TestCancel:
    """The client is gone."""

    async def test_entries_are_removed_and_fetches_cancelled(self):
        """No entry stays, and the task that fetches sessions ends."""
        pending = PendingRequests()
        entry = pending.add("a", 1)
        pending.add("a", 2)
        entry.fetching = asyncio.create_task(asyncio.Event().wait())
        pending.cancel()
        assert not pending
        await asyncio.wait([entry.fetching])
        assert entry.fetching.cancelled()
