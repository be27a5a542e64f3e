"""The methods of a server: unary calls, open streams, and what a drain refuses."""

import asyncio

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from service import errors
from service.accounts import AccountLimits, Accounts
from service.errors import Code, Reason
from service.rpc.methods import ANONYMOUS, Call, Unary
from service.rpc.request_bytes import LARGE_BYTES
from service.rpc.statuses import RefusedError
from tests.fakes import Refusal, turn
from tests.unit.service.rpc.rigs import SECRET, RouterRig


class TestUnaryCalls:
    """One request, and one response or error."""

    async def test_a_unary_call_is_answered(self, rig):
        """The behaviour gets request and call; its response comes back as bytes."""
        assert await rig.call("hello") == "hello for me"
        assert rig.errors == []

    async def test_a_refusal_is_a_status_and_is_counted(self, rig):
        """A StreamcellError becomes the status that the client gets."""
        with pytest.raises(RefusedError) as caught:
            await rig.call("refuse")
        assert Refusal.of(caught.value.status).reason == Reason.OVERLOADED
        assert rig.errors == [("/t/Unary", Reason.OVERLOADED)]

    async def test_a_fault_leaks_nothing(self, rig, caplog):
        """Any other exception is INTERNAL with an id; its text is in the log alone, and it is counted."""
        with pytest.raises(RefusedError) as caught:
            await rig.call("break")
        status = caught.value.status
        assert SECRET not in status.message
        assert SECRET.encode() not in status.details
        assert "RuntimeError" not in status.message + str(status.details)
        found = Refusal.of(status)
        assert found.reason == Reason.INTERNAL
        assert caught.value.__cause__ is None
        assert SECRET in caplog.text
        assert caplog.records[0].fields["error_id"] == found.metadata["error_id"]
        assert rig.errors == [("/t/Unary", Reason.INTERNAL)]

    async def test_a_large_request_is_refused_unread(self, rig):
        """A message over the bound is MESSAGE_TOO_LARGE; a message at the bound is not."""
        overhead = len(StringValue(value="x" * 90).SerializeToString()) - 90
        assert len(await rig.call("x" * (100 - overhead))) > 0
        with pytest.raises(RefusedError) as caught:
            await rig.call("x" * (101 - overhead))
        assert Refusal.of(caught.value.status).metadata == {"max_message_bytes": "100"}

    async def test_junk_is_refused(self, rig):
        """Bytes that are no request are INVALID_ARGUMENT."""
        with pytest.raises(RefusedError) as caught:
            await rig.router.answer(rig.unary, b"\xff\xff\xff", Call())
        assert Refusal.of(caught.value.status).metadata == {"field": "message"}

    async def test_a_cancelled_call_is_no_error(self, rig):
        """A client that goes away is neither counted nor refused: the cancellation goes through."""
        never = asyncio.get_running_loop().create_future()

        async def wait(request, call):
            await never

        task = asyncio.create_task(rig.router.answer(Unary("/t/Wait", StringValue, wait), b"", Call()))
        await turn()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert rig.errors == []


class TestOpenStreams:
    """The streams that a router knows."""

    async def test_open_streams_are_counted(self, rig):
        """Each stream raises the count, each close lowers it and cancels; a second close changes nothing."""
        first, echo = rig.open()
        second, _ = rig.open()
        rig.router.close(first)
        rig.router.close(first)
        assert echo.calls == ["cancel", "cancel"]
        rig.router.close(second)
        assert rig.counts == [1, 2, 1, 1, 0]


class TestDrain:
    """What a router does once the server drains."""

    async def test_a_drain_stops_every_stream(self, rig):
        """Each conversation is stopped with DRAINING; closed streams are left alone."""
        first, one = rig.open()
        gone, other = rig.open()
        rig.router.close(gone)
        rig.router.drain()
        ((event, error),) = one.calls
        assert event == "stop"
        assert error.reason is Reason.DRAINING
        assert other.calls == ["cancel"]
        assert first.take() is None
        assert first.is_over
        assert Refusal.of(first.status).reason == Reason.DRAINING

    async def test_a_drain_refuses_new_work_and_counts_it(self, rig):
        """Work is DRAINING before and after its request is read; reports on the server are still answered."""
        rig.router.admit(rig.unary)
        rig.router.drain()
        with pytest.raises(RefusedError) as caught:
            rig.router.admit(rig.unary)
        assert Refusal.of(caught.value.status).reason == Reason.DRAINING
        with pytest.raises(RefusedError) as caught:
            await rig.router.answer(rig.unary, b"\xff" * 1000, Call())
        assert Refusal.of(caught.value.status).reason == Reason.DRAINING
        assert rig.errors == [("/t/Unary", Reason.DRAINING)] * 2
        assert await rig.router.answer(rig.report, b"", Call("me"))

    async def test_a_stream_that_begins_in_a_drain_ends_at_once(self, rig):
        """Its client may never send a message, and must not hold the drain up."""
        rig.router.drain()
        stream, _ = rig.open()
        assert stream.is_over
        assert Refusal.of(stream.status).reason == Reason.DRAINING
        assert rig.errors == [("/t/Stream", Reason.DRAINING)]
        rig.router.close(stream)
        assert rig.counts == [1, 0]


class Later:
    """A clock and timers moved by hand."""

    def __init__(self):
        self.now, self.due = 0.0, []

    def clock(self):
        """The time."""
        return self.now

    def call_later(self, delay, function):
        """Records a call."""
        self.due.append((self.now + delay, function))

    def advance(self, seconds):
        """Moves the time on, and calls what is due."""
        self.now += seconds
        due = [function for at, function in self.due if at <= self.now]
        self.due = [(at, function) for at, function in self.due if at > self.now]
        for function in due:
            function()


def accounts(later, **limits):
    """Accounts with limits."""
    return Accounts(AccountLimits(**limits), later.call_later, clock=later.clock)


class TestCallers:
    """Who calls, and how much a principal may use."""

    def test_a_caller_must_show_who_it_is_except_for_public_methods(self):
        """The error is counted under the method's path, and the caller sees only its reason."""

        def caller_of(certificate, authorization):
            if authorization != b"Bearer right":
                raise errors.refusal(Reason.UNAUTHENTICATED)
            return Call("alice")

        rig = RouterRig(caller_of=caller_of)
        assert rig.router.asks_who_calls
        assert rig.router.caller(rig.unary, None, b"Bearer right").principal == "alice"
        assert rig.router.caller(rig.public, None, b"Bearer wrong") is ANONYMOUS
        with pytest.raises(RefusedError):
            rig.router.caller(rig.unary, b"a certificate", b"Bearer wrong")
        assert rig.errors == [("/t/Unary", Reason.UNAUTHENTICATED)]

    def test_where_nobody_is_asked_everybody_is_nobody(self):
        """Whatever a caller shows."""
        rig = RouterRig()
        assert not rig.router.asks_who_calls
        assert rig.router.caller(rig.unary, b"x", b"Bearer y") is ANONYMOUS

    async def test_a_unary_call_of_an_account_in_debt_is_refused_with_when_to_come_again(self):
        """Reports on the server are answered; another principal's account is another one."""
        later = Later()
        every = accounts(later, bytes_per_second=10.0)
        rig = RouterRig()
        alice, bob = (Call(name, every.of(name)) for name in ("alice", "bob"))
        raw = StringValue(value="x" * 33).SerializeToString()
        assert len(raw) == 35
        await rig.router.answer(rig.unary, raw, alice)
        with pytest.raises(RefusedError) as caught:
            await rig.router.answer(rig.unary, raw, alice)
        assert caught.value.status.retry_pushback_ms == 2500
        assert rig.errors == [("/t/Unary", Reason.QUOTA_EXCEEDED)]
        await rig.router.answer(rig.report, raw, alice)
        await rig.router.answer(rig.unary, raw, bob)
        later.advance(2.5)
        await rig.router.answer(rig.unary, raw, alice)

    def test_a_stream_too_many_ends_with_the_limit_and_does_not_count(self):
        """A stream that ended makes room."""
        every = accounts(Later(), max_streams=1)
        rig = RouterRig()
        call = Call("alice", every.of("alice"))
        first = rig.router.open(rig.streaming, call)
        second = rig.router.open(rig.streaming, call)
        assert not first.is_over
        assert second.is_over
        assert second.status.code == Code.RESOURCE_EXHAUSTED
        rig.router.close(second)
        rig.router.close(first)
        assert not rig.router.open(rig.streaming, call).is_over

    def test_a_stream_of_an_account_in_debt_is_read_no_further_until_it_is_paid(self):
        """No message is refused: the client is slowed down."""
        later = Later()
        every = accounts(later, bytes_per_second=10.0)
        rig = RouterRig(max_stream_messages=100)
        stream = rig.router.open(rig.streaming, Call("alice", every.of("alice")))
        changes = []
        stream.on_change = lambda: changes.append(later.now)
        stream.receive(b"x" * 30)
        assert [stream.is_full for _ in range(3)] == [True] * 3
        assert len(later.due) == 1
        later.advance(1.0)
        assert stream.is_full
        assert changes == []
        later.advance(1.0)
        assert changes == [2.0]
        assert not stream.is_full
        assert stream.conversation.calls == [b"x" * 30]
        stream.receive(b"y" * 30)
        assert stream.is_full
        rig.router.close(stream)
        changes.clear()
        later.advance(10.0)
        assert changes == []
        assert not stream.is_full


class TestActiveCalls:
    """The bound on the calls of a front."""

    @pytest.mark.parametrize("method", ["unary", "streaming"])
    async def test_a_call_above_the_bound_is_refused_with_a_delay(self, rig, method):
        """The refusal is counted; below the bound nothing is."""
        rig.router.admit_call(getattr(rig, method), 9)
        assert rig.errors == []
        with pytest.raises(RefusedError) as caught:
            rig.router.admit_call(getattr(rig, method), 10)
        found = Refusal.of(caught.value.status)
        assert (found.reason, found.retry_delay_seconds) == (Reason.OVERLOADED, 1.0)
        assert "10 calls are under way" in caught.value.status.message
        assert rig.errors == [(getattr(rig, method).path, Reason.OVERLOADED)]

    async def test_questions_about_the_server_have_a_reserve(self, rig):
        """Whoever watches the server's health gets an answer, and cannot take more than the reserve."""
        rig.router.admit_call(rig.report, 73)
        with pytest.raises(RefusedError):
            rig.router.admit_call(rig.report, 74)

    async def test_large_requests_count_while_they_are_answered(self):
        """Small ones do not."""
        rig = RouterRig(max_message_bytes=2 * LARGE_BYTES)
        total = rig.router.request_bytes
        answering = asyncio.create_task(rig.call("x" * LARGE_BYTES))
        assert total.num_bytes == 0
        assert len(await answering) > LARGE_BYTES
        assert total.num_bytes == 0
        with pytest.raises(RefusedError):
            await rig.router.answer(rig.unary, b"\xff" * LARGE_BYTES, Call())
        assert total.num_bytes == 0
