"""Calls without a transport: statuses that decode, streams in order and bounded, faults that leak nothing."""

import asyncio
import dataclasses
import json

import grpc
import pytest
from google.protobuf.wrappers_pb2 import Int64Value, StringValue
from grpc_status import rpc_status

from service import errors
from service.errors import Reason, StreamcellError
from service.rpc.router import Call, Router, Stream, Streaming, Unary, parse
from service.rpc.statuses import RefusedError, status_of
from tests.fakes import Refusal, next_message, room, turn

SECRET = "the password is sealed"  # noqa: S105


class Echo:
    """A conversation under the test's control: it notes what it is told and answers when asked to."""

    def __init__(self, stream):
        self.stream = stream
        self.told = []

    def receive(self, raw):
        """Notes a message, or does what it says."""
        if raw == b"refuse":
            raise errors.refusal(Reason.STEP_GAP, expected_step_index=1, got=2)
        if raw == b"break":
            raise RuntimeError(SECRET)
        self.told.append(raw)

    def stop(self, error):
        """Notes it and ends."""
        self.told.append(("stop", error))
        self.stream.end(error)

    def cancel(self):
        """Notes it."""
        self.told.append("cancel")


class House:
    """A router with an echoing stream and a unary method that does what its text says."""

    def __init__(self, max_message_bytes=100, max_stream_messages=2):
        self.errors, self.counts = [], []
        self.unary = Unary("/t/Unary", StringValue, self._answer)
        self.telling = Unary("/t/Telling", StringValue, self._answer, is_work=False)
        self.streaming = Streaming("/t/Stream", lambda stream, call: Echo(stream))
        self.router = Router(
            [self.unary, self.telling, self.streaming],
            max_message_bytes,
            max_stream_messages,
            lambda path, error: self.errors.append((path, error.reason)),
            self.counts.append,
        )

    async def _answer(self, request, call):
        if request.value == "refuse":
            raise errors.refusal(Reason.OVERLOADED, queued_steps=9, retry_delay_seconds=1.25)
        if request.value == "break":
            raise RuntimeError(SECRET)
        return StringValue(value=f"{request.value} for {call.principal}")

    async def ask(self, value):
        """Returns the unary answer's text."""
        raw = StringValue(value=value).SerializeToString()
        return StringValue.FromString(await self.router.answer(self.unary, raw, Call("me"))).value

    def open(self):
        """Returns a stream and its conversation."""
        stream = self.router.open(self.streaming, Call())
        return stream, stream.conversation


@pytest.fixture
def house():
    """A router."""
    return House()


async def collect(stream):
    """Returns what a stream sends until its end."""
    found = []
    while (message := await asyncio.wait_for(next_message(stream), 5)) is not None:
        found.append(message)
    return found


# -- Statuses ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class EndedCall:
    """A call as grpc_status wants it."""

    status: object

    def trailing_metadata(self):
        """Returns the details."""
        return (("grpc-status-details-bin", self.status.details),)

    def code(self):
        """Returns gRPC's own code."""
        return next(code for code in grpc.StatusCode if code.value[0] == self.status.code)

    def details(self):
        """Returns the sentence."""
        return self.status.message


def test_a_status_decodes_with_the_standard_library():
    """grpc_status reads code, sentence, reason, facts and delay out of the details."""
    status = status_of(errors.refusal(Reason.OVERLOADED, queued_steps=9, retry_delay_seconds=1.25))
    decoded = rpc_status.from_call(EndedCall(status))
    assert decoded.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert decoded.message == status.message
    assert Refusal.of(status).retry_delay_seconds == 1.25


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_makes_a_status(reason):
    """Whatever the reason, its status has its code, a domain and the facts."""
    found = Refusal.of(status_of(StreamcellError(reason, "why", metadata={"a": "b"})))
    assert found == Refusal(errors.REASONS[reason].code, reason, "why", {"a": "b"})


def test_parse_refuses_what_is_no_message():
    """Bytes that cannot be parsed are INVALID_ARGUMENT and name the message wanted."""
    with pytest.raises(StreamcellError, match=r"google\.protobuf\.Int64Value") as caught:
        parse(Int64Value, b"\xff\xff")
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert parse(Int64Value, Int64Value(value=3).SerializeToString()).value == 3


# -- Unary -------------------------------------------------------------------------------------------


async def test_a_unary_call_is_answered(house):
    """The behaviour gets request and call; its response comes back as bytes."""
    assert await house.ask("hello") == "hello for me"
    assert house.errors == []


async def test_a_refusal_is_a_status_and_is_counted(house):
    """A StreamcellError is what the client gets."""
    with pytest.raises(RefusedError) as caught:
        await house.ask("refuse")
    assert Refusal.of(caught.value.status).reason == Reason.OVERLOADED
    assert house.errors == [("/t/Unary", Reason.OVERLOADED)]


async def test_a_fault_leaks_nothing(house, caplog):
    """Any other exception is INTERNAL with an id; its text is in the log alone, and it is counted."""
    with pytest.raises(RefusedError) as caught:
        await house.ask("break")
    status = caught.value.status
    assert SECRET not in status.message
    assert SECRET.encode() not in status.details
    assert "RuntimeError" not in status.message + str(status.details)
    found = Refusal.of(status)
    assert found.reason == Reason.INTERNAL
    assert caught.value.__cause__ is None
    assert SECRET in caplog.text
    assert caplog.records[0].fields["error_id"] == found.metadata["error_id"]
    assert house.errors == [("/t/Unary", Reason.INTERNAL)]


async def test_a_large_request_is_refused_unread(house):
    """A message over the bound is MESSAGE_TOO_LARGE; one at the bound is not."""
    overhead = len(StringValue(value="x" * 90).SerializeToString()) - 90
    assert len(await house.ask("x" * (100 - overhead))) > 0
    with pytest.raises(RefusedError) as caught:
        await house.ask("x" * (101 - overhead))
    assert Refusal.of(caught.value.status).metadata == {"max_message_bytes": "100"}


async def test_junk_is_refused(house):
    """Bytes that are no request are INVALID_ARGUMENT."""
    with pytest.raises(RefusedError) as caught:
        await house.router.answer(house.unary, b"\xff\xff\xff", Call())
    assert Refusal.of(caught.value.status).metadata == {"field": "message"}


async def test_a_cancelled_call_is_no_error(house):
    """A client that goes away is neither counted nor refused: the cancellation goes through."""
    never = asyncio.get_running_loop().create_future()

    async def wait(request, call):
        await never

    task = asyncio.create_task(house.router.answer(Unary("/t/Wait", StringValue, wait), b"", Call()))
    await turn()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert house.errors == []


# -- Streams -----------------------------------------------------------------------------------------


async def test_messages_are_sent_in_order(house):
    """What is sent before the front looks, and after, comes out in order; then the end, with OK."""
    stream, _ = house.open()
    stream.send(b"1")
    stream.send(b"2")
    reader = asyncio.create_task(collect(stream))
    await turn()
    stream.send(b"3")
    await turn()
    stream.end()
    assert await reader == [b"1", b"2", b"3"]
    assert stream.status is None


async def test_a_waiting_front_is_woken_by_a_message(house):
    """It is told when there is something to take."""
    stream, _ = house.open()
    waiting = asyncio.create_task(next_message(stream))
    await turn()
    assert not waiting.done()
    stream.send(b"x")
    assert await waiting == b"x"


async def test_unanswered_messages_are_bounded(house):
    """At the bound the stream is full, and has room again when an answer goes out."""
    stream, _ = house.open()
    stream.receive(b"a")
    assert not stream.is_full
    stream.receive(b"b")
    assert stream.is_full
    stream.send(b"A")
    assert stream.is_full
    assert stream.take() == b"A"
    assert not stream.is_full
    assert stream.take() is None


async def test_the_end_wakes_a_reader_that_waits_for_room(house):
    """A full stream that ends leaves nobody waiting."""
    for finish in (lambda stream: stream.end(), lambda stream: stream.cancel()):
        stream, _ = house.open()
        stream.receive(b"a")
        stream.receive(b"b")
        waiting = asyncio.create_task(room(stream))
        await turn()
        finish(stream)
        await asyncio.wait_for(waiting, 5)


async def test_a_half_close_stops_the_conversation(house):
    """The behaviour is told that no more comes, and decides when the stream ends."""
    stream, echo = house.open()
    stream.receive(b"a")
    stream.half_close()
    assert echo.told == [b"a", ("stop", None)]
    assert await collect(stream) == []
    assert stream.status is None


async def test_a_cancelled_stream_ends_and_takes_no_more(house):
    """The behaviour withdraws what has not begun; later messages are not handed on."""
    stream, echo = house.open()
    waiting = asyncio.create_task(next_message(stream))
    await turn()
    stream.cancel()
    assert await asyncio.wait_for(waiting, 5) is None
    stream.receive(b"late")
    assert echo.told == ["cancel"]


async def test_an_error_ends_the_stream_after_what_was_sent(house):
    """Answers under way still go out; then the error is the status, once, and is counted."""
    stream, echo = house.open()
    stream.receive(b"a")
    stream.send(b"A")
    stream.receive(b"refuse")
    stream.receive(b"late")
    assert echo.told == [b"a", "cancel"]
    assert await collect(stream) == [b"A"]
    assert Refusal.of(stream.status).reason == Reason.STEP_GAP
    stream.end(errors.refusal(Reason.DRAINING))
    assert Refusal.of(stream.status).reason == Reason.STEP_GAP
    assert house.errors == [("/t/Stream", Reason.STEP_GAP)]


async def test_a_fault_ends_the_stream_and_leaks_nothing(house, caplog):
    """An exception in the behaviour is INTERNAL with an id."""
    stream, echo = house.open()
    stream.receive(b"break")
    assert await collect(stream) == []
    assert Refusal.of(stream.status).reason == Reason.INTERNAL
    assert SECRET not in stream.status.message + repr(stream.status.details)
    assert SECRET in caplog.text
    assert echo.told == ["cancel"]


async def test_a_large_message_ends_the_stream(house):
    """The bound on messages holds in streams as well."""
    stream, echo = house.open()
    stream.receive(b"x" * 101)
    assert await collect(stream) == []
    assert Refusal.of(stream.status).reason == Reason.MESSAGE_TOO_LARGE
    assert echo.told == ["cancel"]


async def test_a_paused_stream_is_read_no_further(house):
    """Until it is resumed, or over; what was read is received still."""
    stream, echo = house.open()
    stream.pause()
    assert stream.is_full
    stream.receive(b"a")
    assert echo.told == [b"a"]
    waiting = asyncio.create_task(room(stream))
    await turn()
    assert not waiting.done()
    stream.resume()
    await asyncio.wait_for(waiting, 5)
    stream.pause()
    stream.cancel()
    await asyncio.wait_for(room(stream), 5)


async def test_errors_within_a_stream_are_counted(house):
    """An error that is a message of the stream counts under the stream's path and does not end it."""
    stream, _ = house.open()
    stream.count(errors.refusal(Reason.STEP_GAP, expected_step_index=1, got=2))
    stream.send(b"after")
    assert await next_message(stream) == b"after"
    assert house.errors == [("/t/Stream", Reason.STEP_GAP)]


async def test_open_streams_are_counted(house):
    """The number goes up with each stream and down with each close, which cancels, and may come twice."""
    first, echo = house.open()
    second, _ = house.open()
    house.router.close(first)
    house.router.close(first)
    assert echo.told == ["cancel", "cancel"]
    house.router.close(second)
    assert house.counts == [1, 2, 1, 1, 0]


async def test_a_drain_sends_every_stream_elsewhere(house):
    """Each conversation is stopped with DRAINING; closed streams are left alone."""
    first, one = house.open()
    gone, other = house.open()
    house.router.close(gone)
    house.router.drain()
    assert [type(told) for told in one.told] == [tuple]
    assert other.told == ["cancel"]
    assert await collect(first) == []
    assert Refusal.of(first.status).reason == Reason.DRAINING


async def test_a_drain_refuses_new_work_and_counts_it(house):
    """DRAINING, before a request is read and after; what tells of the server is answered still."""
    house.router.admit(house.unary)
    house.router.drain()
    with pytest.raises(RefusedError) as caught:
        house.router.admit(house.unary)
    assert Refusal.of(caught.value.status).reason == Reason.DRAINING
    with pytest.raises(RefusedError) as caught:
        await house.router.answer(house.unary, b"\xff" * 1000, Call())
    assert Refusal.of(caught.value.status).reason == Reason.DRAINING
    assert house.errors == [("/t/Unary", Reason.DRAINING)] * 2
    assert await house.router.answer(house.telling, b"", Call("me"))


async def test_a_stream_that_begins_in_a_drain_ends_at_once(house):
    """It may never say anything, and must hold nothing up."""
    house.router.drain()
    stream, _ = house.open()
    assert stream.is_over
    assert Refusal.of(stream.status).reason == Reason.DRAINING
    assert house.errors == [("/t/Stream", Reason.DRAINING)]
    house.router.close(stream)
    assert house.counts == [1, 0]


def test_a_stream_without_a_conversation_takes_nothing():
    """Before its behaviour is in place a stream ignores what comes."""
    stream = Stream("/t/Stream", 1, 1000, lambda path, error: None)
    stream.receive(b"early")
    stream.half_close()
    stream.cancel()
    assert not stream.is_full


@pytest.mark.parametrize(
    ("error", "pushback_ms"),
    [
        (errors.refusal(Reason.DRAINING), -1),
        (errors.refusal(Reason.OVERLOADED, queued_steps=9, retry_delay_seconds=1.25), 1250),
        (errors.refusal(Reason.OVERLOADED, queued_steps=9, retry_delay_seconds=0.0001), 1),
        (errors.refusal(Reason.STEP_GAP, expected_step_index=1, got=2), None),
    ],
)
def test_a_status_says_what_a_repetition_should_do(error, pushback_ms):
    """Go elsewhere, come later, or nothing; a delay is never rounded to none."""
    assert status_of(error).retry_pushback_ms == pushback_ms


def test_nothing_of_a_status_is_unprintable():
    """Statuses travel as headers: what a caller sent stands in them quoted."""
    status = status_of(errors.refusal(Reason.SESSION_NOT_FOUND, session_id="a\r\nb\0"))
    assert status.message.isprintable()
    assert json.dumps(status.message)
