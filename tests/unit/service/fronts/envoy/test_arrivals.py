"""Calls whose message has arrived in part: how long they may take, and who gives way."""

import pytest

from service.errors import Code, Reason
from service.fronts.envoy.arrivals import Arrivals
from tests.fakes import Refusal
from tests.unit.service.rpc.rigs import RouterRig

TIMEOUT_SECONDS = 60.0


class FakeCall:
    """A call that records how it was aborted."""

    path = "/t/Unary"

    def __init__(self):
        self.is_reading = True
        self.statuses = []

    def abort(self, status):
        """Records the status."""
        self.statuses.append(status)


class Rig:
    """Arrivals whose time the test controls."""

    def __init__(self):
        self.now = 1.0
        self.router = RouterRig().router
        self.total = self.router.request_bytes
        self.total.max_bytes = 100
        self.arrivals = Arrivals(self.router, TIMEOUT_SECONDS, clock=lambda: self.now)

    def call(self, num_bytes=None):
        """Returns a call that waits for its message, or has so many bytes of it."""
        call = FakeCall()
        self.arrivals.expect(call)
        if num_bytes is not None:
            self.arrivals.note(call, num_bytes)
        return call


@pytest.fixture
def rig():
    """The rig."""
    return Rig()


class TestTime:
    """A message that takes too long."""

    @pytest.mark.parametrize("num_bytes", [None, 0, 10])
    def test_a_call_ends_when_its_time_is_over(self, rig, num_bytes):
        """Whether nothing of its message is here, or a part."""
        call = rig.call(num_bytes)
        rig.now += TIMEOUT_SECONDS - 0.1
        rig.arrivals.end_late()
        assert call.statuses == []
        rig.now += 0.1
        rig.arrivals.end_late()
        assert [status.code for status in call.statuses] == [Code.DEADLINE_EXCEEDED]
        assert "did not arrive whole within 60 s" in call.statuses[0].message
        rig.arrivals.end_late()
        assert len(call.statuses) == 1
        assert rig.total.num_bytes == 0

    def test_bytes_that_trickle_in_give_no_more_time(self, rig):
        """Time counts from the first byte to the last."""
        call = rig.call(1)
        for num_bytes in range(2, 8):
            rig.now += 10.0
            rig.arrivals.note(call, num_bytes)
        rig.arrivals.end_late()
        assert len(call.statuses) == 1

    def test_a_complete_message_ends_the_time(self, rig):
        """The call may take as long as it likes then."""
        call = rig.call(10)
        rig.arrivals.forget(call)
        rig.now += TIMEOUT_SECONDS
        rig.arrivals.end_late()
        assert call.statuses == []

    def test_time_in_which_the_server_does_not_read_does_not_count(self, rig):
        """A stream that has no room is not read; its bytes still count."""
        call = rig.call(10)
        call.is_reading = False
        rig.now += TIMEOUT_SECONDS
        rig.arrivals.end_late()
        assert (call.statuses, rig.total.num_bytes) == ([], 10)
        call.is_reading = True
        rig.now += TIMEOUT_SECONDS
        rig.arrivals.end_late()
        assert (len(call.statuses), rig.total.num_bytes) == (1, 0)

    def test_only_the_late_ones_end(self, rig):
        """The others keep their time."""
        first = rig.call(10)
        rig.now += 1.0
        second, third = rig.call(10), rig.call()
        rig.now += TIMEOUT_SECONDS - 1.0
        rig.arrivals.end_late()
        assert [len(each.statuses) for each in (first, second, third)] == [1, 0, 0]


class TestBytes:
    """More bytes than may be."""

    def test_the_oldest_gives_way_with_a_delay(self, rig):
        """As many as needed; who came last is let in."""
        calls = [rig.call(40) for _ in range(2)]
        newest = rig.call(60)
        assert [len(each.statuses) for each in (*calls, newest)] == [1, 0, 0]
        found = Refusal.of(calls[0].statuses[0])
        assert (found.reason, found.retry_delay_seconds) == (Reason.OVERLOADED, 1.0)
        assert calls[0].statuses[0].code == Code.RESOURCE_EXHAUSTED
        assert rig.total.num_bytes == 100
        rig.arrivals.note(newest, 61)
        assert [len(each.statuses) for each in (calls[1], newest)] == [1, 0]
        assert rig.total.num_bytes == 61

    def test_a_message_larger_than_all_gives_way_itself(self, rig):
        """Nothing is left of it."""
        call = rig.call(101)
        assert len(call.statuses) == 1
        assert rig.total.num_bytes == 0

    def test_unanswered_requests_of_others_leave_less_room(self, rig):
        """They do not give way: the calls that arrive do."""
        rig.total.num_bytes = 95
        call = rig.call(6)
        assert len(call.statuses) == 1
        assert rig.total.num_bytes == 95
