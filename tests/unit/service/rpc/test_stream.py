"""A stream between its front and its behaviour: messages in order, bounded, and an end that leaks nothing."""

import asyncio

from service import errors
from service.errors import Reason
from service.rpc.request_bytes import RequestBytes
from service.rpc.stream import Stream
from tests.fakes import Refusal, next_message, room, turn
from tests.unit.service.rpc.rigs import SECRET


async def collect(stream):
    """Returns the messages that a stream sends until its end."""
    found = []
    while (message := await asyncio.wait_for(next_message(stream), 5)) is not None:
        found.append(message)
    return found


class TestSending:
    """Messages for the client."""

    async def test_messages_are_sent_in_order(self, rig):
        """Messages sent before and after the front reads come out in order; then the stream ends with OK."""
        stream, _ = rig.open()
        stream.send(b"1")
        stream.send(b"2")
        reader = asyncio.create_task(collect(stream))
        await turn()
        stream.send(b"3")
        await turn()
        stream.end()
        assert await reader == [b"1", b"2", b"3"]
        assert stream.status is None

    async def test_a_message_wakes_a_waiting_front(self, rig):
        """`on_change` is called when there is a message to take."""
        stream, _ = rig.open()
        waiting = asyncio.create_task(next_message(stream))
        await turn()
        assert not waiting.done()
        stream.send(b"x")
        assert await waiting == b"x"


class TestRoom:
    """The bound on messages without an answer, and pauses."""

    async def test_unanswered_messages_are_bounded(self, rig):
        """At the bound the stream is full, and has room again when an answer goes out."""
        stream, _ = rig.open()
        stream.receive(b"a")
        assert not stream.is_full
        stream.receive(b"b")
        assert stream.is_full
        stream.send(b"A")
        assert stream.is_full
        assert stream.take() == b"A"
        assert not stream.is_full
        assert stream.take() is None

    async def test_the_end_wakes_a_reader_that_waits_for_room(self, rig):
        """A full stream that ends leaves no reader waiting."""
        for finish in (lambda stream: stream.end(), lambda stream: stream.cancel()):
            stream, _ = rig.open()
            stream.receive(b"a")
            stream.receive(b"b")
            waiting = asyncio.create_task(room(stream))
            await turn()
            finish(stream)
            await asyncio.wait_for(waiting, 5)

    async def test_a_paused_stream_is_read_no_further(self, rig):
        """The pause lasts until the stream is resumed or over; messages read before are still received."""
        stream, echo = rig.open()
        stream.pause()
        assert stream.is_full
        stream.receive(b"a")
        assert echo.calls == [b"a"]
        waiting = asyncio.create_task(room(stream))
        await turn()
        assert not waiting.done()
        stream.resume()
        await asyncio.wait_for(waiting, 5)
        stream.pause()
        stream.cancel()
        await asyncio.wait_for(room(stream), 5)


class TestEnd:
    """What ends a stream, and what its behaviour hears of the end."""

    async def test_a_half_close_stops_the_conversation(self, rig):
        """The behaviour hears that no more messages come, and decides when the stream ends."""
        stream, echo = rig.open()
        stream.receive(b"a")
        stream.half_close()
        assert echo.calls == [b"a", ("stop", None)]
        assert await collect(stream) == []
        assert stream.status is None

    async def test_a_cancelled_stream_ends_and_takes_no_more(self, rig):
        """The behaviour is cancelled; later messages do not reach it."""
        stream, echo = rig.open()
        waiting = asyncio.create_task(next_message(stream))
        await turn()
        stream.cancel()
        assert await asyncio.wait_for(waiting, 5) is None
        stream.receive(b"late")
        assert echo.calls == ["cancel"]

    async def test_a_stream_without_a_conversation_takes_nothing(self):
        """A stream ignores messages that come before its behaviour is in place."""
        stream = Stream(
            "/t/Stream",
            max_unanswered=1,
            max_message_bytes=1000,
            count_error=lambda path, error: None,
            request_bytes=RequestBytes(1000),
        )
        stream.receive(b"early")
        stream.half_close()
        stream.cancel()
        assert not stream.is_full


class TestErrors:
    """Errors that end a stream, and errors within it."""

    async def test_an_error_ends_the_stream_after_the_messages_sent(self, rig):
        """Queued answers still go out; then the first error is the status, and it is counted once."""
        stream, echo = rig.open()
        stream.receive(b"a")
        stream.send(b"A")
        stream.receive(b"refuse")
        stream.receive(b"late")
        assert echo.calls == [b"a", "cancel"]
        assert await collect(stream) == [b"A"]
        assert Refusal.of(stream.status).reason == Reason.STEP_GAP
        stream.end(errors.refusal(Reason.DRAINING))
        assert Refusal.of(stream.status).reason == Reason.STEP_GAP
        assert rig.errors == [("/t/Stream", Reason.STEP_GAP)]

    async def test_a_fault_ends_the_stream_and_leaks_nothing(self, rig, caplog):
        """An exception in the behaviour is INTERNAL with an id; its text is in the log alone."""
        stream, echo = rig.open()
        stream.receive(b"break")
        assert await collect(stream) == []
        assert Refusal.of(stream.status).reason == Reason.INTERNAL
        assert SECRET not in stream.status.message + repr(stream.status.details)
        assert SECRET in caplog.text
        assert echo.calls == ["cancel"]

    async def test_a_large_message_ends_the_stream(self, rig):
        """The bound on messages holds in streams as well."""
        stream, echo = rig.open()
        stream.receive(b"x" * 101)
        assert await collect(stream) == []
        assert Refusal.of(stream.status).reason == Reason.MESSAGE_TOO_LARGE
        assert echo.calls == ["cancel"]

    async def test_errors_within_a_stream_are_counted(self, rig):
        """An error that is a message of the stream counts under the stream's path and does not end it."""
        stream, _ = rig.open()
        stream.count(errors.refusal(Reason.STEP_GAP, expected_step_index=1, got=2))
        stream.send(b"after")
        assert await next_message(stream) == b"after"
        assert rig.errors == [("/t/Stream", Reason.STEP_GAP)]
