"""The methods of a server: unary calls, open streams, and what a drain refuses."""

import asyncio

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from service.errors import Reason
from service.rpc.methods import Call, Unary
from service.rpc.statuses import RefusedError
from tests.fakes import Refusal, turn
from tests.unit.service.rpc.rigs import SECRET


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
