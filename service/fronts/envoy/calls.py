"""Active gRPC calls of the envoy front: from ASGI's events to a router's methods and back.

`receive` and `send` act when called, so a stream needs no task of its own, and the answers of a batch leave
within the call that ends the batch. Does not know what the methods do.
"""

import asyncio
from collections import deque
from typing import Any

from service.errors import Code
from service.fronts.envoy import wire
from service.fronts.envoy.asgi import (
    BODY,
    START,
    TRAILERS,
    DisconnectCheck,
    Event,
    Receive,
    Send,
    future_of,
    uncancelled,
)
from service.fronts.envoy.intake import Intake
from service.fronts.envoy.wire import Deframer, Headers
from service.fronts.inflating import inflated
from service.rpc.inflation import Packed
from service.rpc.methods import Call, Streaming, Unary
from service.rpc.router import Router
from service.rpc.statuses import RefusedError, Status
from service.rpc.stream import Stream

_HEADERS: Headers = [(b"content-type", wire.CONTENT_TYPE), (b"grpc-accept-encoding", wire.ENCODINGS)]
_START_EVENT = {"type": START, "status": 200, "headers": _HEADERS, "trailers": True}
_LAST_BODY = {"type": BODY, "body": b"", "more_body": False}
_OK = {"type": TRAILERS, "headers": wire.OK_TRAILERS}


def send_trailers_only(send: Send, status: Status | None) -> None:
    """Ends a call that has sent nothing: its only headers hold the status (gRPC's Trailers-Only)."""
    send({"type": START, "status": 200, "headers": [*_HEADERS, *wire.trailers(status)]})
    send(_LAST_BODY)


class UnaryCall:
    """A unary call, served in its request's task."""

    def __init__(
        self,
        router: Router,
        method: "Unary[Any]",
        *,
        deframer: Deframer,
        intake: Intake,
        receive: Receive,
        send: Send,
    ) -> None:
        self.path = method.path
        self.is_reading = True
        self._router = router
        self._method = method
        self._deframer = deframer
        self._intake = intake
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._disconnect_check: DisconnectCheck | None = None  # set once the request is complete
        self._abort_status: Status | None = None

    async def serve(self, call: Call) -> None:
        """Answers the call, or ends it with its error."""
        send = self._send
        try:
            raw = await self._request()
            if raw is None:
                return
            self._disconnect_check = DisconnectCheck(self._receive, self._cancel)
            response = await self._router.answer(self._method, raw, call)
            send(_START_EVENT)
            send({"type": BODY, "body": wire.frame(response)})
            send(_OK)
        except RefusedError as refused:
            send_trailers_only(send, refused.status)
        except asyncio.CancelledError:
            if self._abort_status is not None:
                send_trailers_only(send, self._abort_status)

    async def _request(self) -> bytes | None:
        """Returns the one message of the request; None if the client is gone before it is complete."""
        messages: list[bytes | Packed] = []
        arrivals = self._intake.arrivals
        arrivals.expect(self)
        while True:
            event = await uncancelled(self._receive())
            if event["type"] != "http.request":
                return None
            messages += self._deframer.feed(event["body"])
            if not event["more_body"] or len(messages) > 1:
                break
            arrivals.note(self, self._deframer.num_partial_bytes + sum(map(len, messages)))
        arrivals.forget(self)
        self._deframer.close()
        if len(messages) != 1:
            raise wire.refused(Code.UNIMPLEMENTED, f"a unary call has one message, not {len(messages)}")
        (message,) = messages
        return message if isinstance(message, bytes) else await inflated(message, self._intake.inflation)

    def check_client(self) -> None:
        """Checks whether the client still waits for the answer."""
        if self._disconnect_check is not None:
            self._disconnect_check.run()

    def abort(self, status: Status) -> None:
        """Ends the call with a status, whatever it is doing."""
        self._abort_status = status
        self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class StreamCall:
    """A streaming call, driven by events from either side; its request's task only waits for the end."""

    def __init__(
        self,
        router: Router,
        method: Streaming,
        *,
        deframer: Deframer,
        intake: Intake,
        receive: Receive,
        send: Send,
    ) -> None:
        self.path = method.path
        self._router = router
        self._method = method
        self._deframer = deframer
        self._intake = intake
        self._receive = receive
        self._send = send
        self._stream: Stream
        self._received: deque[bytes | Packed] = deque()  # messages that the stream has no room for yet
        self._inflating: Packed | None = None  # the message before those, while it waits to be inflated
        self._is_delivering = False
        self.is_reading = False
        self._is_arriving = False
        self._is_half_closed = False
        self._disconnect_check: DisconnectCheck | None = None  # set once the request is complete
        self._has_sent_headers = False
        self._pending_write: asyncio.Future[None] | None = None  # done when Envoy has accepted the last body
        self._is_write_watched = False
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def serve(self, call: Call) -> None:
        """Serves the stream and returns when it is over."""
        self._stream = self._router.open(self._method, call)
        self._stream.on_change = self._on_change
        try:
            self._on_change()
            await self._over
        finally:
            self._stream.on_change = _ignore
            self._router.close(self._stream)
            if self._inflating is not None:
                self._inflating.is_dropped = True
            if self._pending_write is not None:
                self._pending_write.add_done_callback(_retrieve_exception)

    def check_client(self) -> None:
        """Checks whether the client still listens."""
        if self._disconnect_check is not None:
            self._disconnect_check.run()

    def abort(self, status: Status) -> None:
        """Ends the call with a status, whatever it is doing."""
        self._end(status)

    def _on_change(self) -> None:
        if self._over.done():
            return
        self._send_messages()
        if self._stream.is_over:
            self._end(self._stream.status)
        else:
            self._deliver()

    def _end(self, status: Status | None) -> None:
        if self._over.done():
            return
        self._finish()
        if self._has_sent_headers:
            self._send(_LAST_BODY)
            self._send({"type": TRAILERS, "headers": wire.trailers(status)})
        else:
            send_trailers_only(self._send, status)

    def _finish(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    # -- From the client ---------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Passes messages to the stream as long as it has room, and then reads on."""
        if self._is_delivering:  # the stream answered at once, within the loop below, which goes on
            return
        received, stream = self._received, self._stream
        if received:
            self._is_delivering = True
            while received and not stream.is_full and self._inflating is None:
                message = received.popleft()
                if isinstance(message, bytes):
                    stream.receive(message)
                else:
                    self._inflating = message
                    self._intake.inflation.inflate(message, self._on_inflated)
            self._is_delivering = False
        if self.is_reading or received or self._inflating or stream.is_full or self._over.done():
            return
        if self._disconnect_check is None:
            self.is_reading = True
            future_of(self._receive()).add_done_callback(self._on_read)
        elif not self._is_half_closed:
            self._is_half_closed = True
            stream.half_close()

    def _on_inflated(self, found: bytes | RefusedError) -> None:
        self._inflating = None
        if isinstance(found, RefusedError):
            self._received.clear()
            self.abort(found.status)
            return
        self._stream.receive(found)
        self._deliver()

    def _on_read(self, future: "asyncio.Future[Event]") -> None:
        self.is_reading = False
        event = future.result()
        if event["type"] != "http.request":
            self._finish()
            return
        try:
            messages = self._deframer.feed(event["body"])
            if not event["more_body"]:
                self._deframer.close()
                self._disconnect_check = DisconnectCheck(self._receive, self._finish)
        except RefusedError as refused:
            self.abort(refused.status)
            return
        self._received += messages
        self._note_arrival(is_new=bool(messages))
        self._deliver()

    def _note_arrival(self, *, is_new: bool) -> None:
        """Records what is here of a message that is not complete; `is_new`: the message before it is."""
        num_bytes = self._deframer.num_partial_bytes
        if is_new and self._is_arriving:
            self._intake.arrivals.forget(self)
        self._is_arriving = num_bytes > 0
        if num_bytes:
            self._intake.arrivals.note(self, num_bytes)

    # -- To the client -----------------------------------------------------------------------------

    def _send_messages(self) -> None:
        """Sends every message of the stream in one body, once Envoy has accepted the body before."""
        pending = self._pending_write
        if pending is not None and not pending.done():
            if not self._is_write_watched:
                self._is_write_watched = True
                pending.add_done_callback(self._on_written)
            return
        message = self._stream.take()
        if message is None:
            return
        body = wire.frame(message)
        while (message := self._stream.take()) is not None:
            body += wire.frame(message)
        if not self._has_sent_headers:
            self._has_sent_headers = True
            self._send(_START_EVENT)
        self._pending_write = future_of(self._send({"type": BODY, "body": body, "more_body": True}))

    def _on_written(self, future: "asyncio.Future[None]") -> None:
        self._is_write_watched = False
        if future.exception() is not None:
            self._finish()
        else:
            self._on_change()


def _retrieve_exception(future: "asyncio.Future[None]") -> None:
    future.exception()  # the client is gone; asyncio would log an exception that nobody retrieves


def _ignore() -> None:
    pass
