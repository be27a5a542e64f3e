"""Calls under way on the fast front: from ASGI's events to a router's methods and back.

Relies on what pyvoy adds to ASGI: `receive` and `send` act when called, whether or not what they return is
awaited. So a stream needs no task of its own, and what a batch answers goes out from the call that ends the
batch. Once a request is complete `receive` returns at once; whether its client is still there has to be asked
now and then. Knows gRPC's wire, not what the methods do.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from service.errors import Code
from service.fronts.envoy import wire
from service.fronts.envoy.wire import Deframer, Headers
from service.rpc.methods import Call, Streaming, Unary
from service.rpc.router import Router
from service.rpc.statuses import RefusedError, Status
from service.rpc.stream import Stream

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

START = "http.response.start"
BODY = "http.response.body"
_TRAILERS = "http.response.trailers"
_HEADERS: Headers = [(b"content-type", wire.CONTENT_TYPE), (b"grpc-accept-encoding", wire.ENCODINGS)]
_BEGINNING = {"type": START, "status": 200, "headers": _HEADERS, "trailers": True}
_LAST_BODY = {"type": BODY, "body": b"", "more_body": False}
_OK = {"type": _TRAILERS, "headers": wire.OK_TRAILERS}


class Carried(Protocol):
    """A call under way."""

    async def carry(self, call: Call) -> None:
        """Carries the call until it is over."""

    def break_off(self, status: Status) -> None:
        """Ends it with a status, wherever it is."""

    def ask(self) -> None:
        """Finds out whether the client still waits, where nothing else would tell."""


_Result = TypeVar("_Result")


def future_of(given: Awaitable[_Result]) -> "asyncio.Future[_Result]":
    """Returns what pyvoy gave as the future that it is; what it answers at once is none, and becomes one."""
    return given if isinstance(given, asyncio.Future) else asyncio.ensure_future(given)


def end(send: Send, status: Status | None) -> None:
    """Ends a call that has sent nothing: the status stands in its only headers."""
    send({"type": START, "status": 200, "headers": [*_HEADERS, *wire.trailers(status)]})
    send(_LAST_BODY)


class Presence:
    """Whether a client that has sent all it had to is still there."""

    def __init__(self, receive: Receive, on_gone: Callable[[], None]) -> None:
        self._receive = receive
        self._on_gone = on_gone
        self._is_asking = False

    def ask(self) -> None:
        """Finds out."""
        if not self._is_asking:
            self._is_asking = True
            future_of(self._receive()).add_done_callback(self._told)

    def _told(self, future: "asyncio.Future[Event]") -> None:
        self._is_asking = False
        if future.result()["type"] == "http.disconnect":
            self._on_gone()


class CarriedCall:
    """A unary call, in its request's task."""

    def __init__(
        self, router: Router, method: "Unary[Any]", deframer: Deframer, receive: Receive, send: Send
    ) -> None:
        self._router = router
        self._method = method
        self._deframer = deframer
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._presence: Presence | None = None
        self._end_with: Status | None = None

    async def carry(self, call: Call) -> None:
        """Answers the call, or ends it with its error."""
        send = self._send
        try:
            raw = await self._request()
            if raw is None:
                return
            self._presence = Presence(self._receive, self._cancel)
            response = await self._router.answer(self._method, raw, call)
            send(_BEGINNING)
            send({"type": BODY, "body": wire.frame(response)})
            send(_OK)
        except RefusedError as refused:
            end(send, refused.status)
        except asyncio.CancelledError:
            if self._end_with is not None:
                end(send, self._end_with)

    async def _request(self) -> bytes | None:
        """Returns the one message of the request, None if the client is gone before it is complete."""
        messages: list[bytes] = []
        has_more = True
        while has_more:
            event = await self._receive()
            if event["type"] != "http.request":
                return None
            messages += self._deframer.feed(event["body"])
            has_more = event["more_body"]
        self._deframer.close()
        if len(messages) != 1:
            raise wire.refused(Code.UNIMPLEMENTED, f"a unary call has one message, not {len(messages)}")
        return messages[0]

    def ask(self) -> None:
        """Finds out whether the client still waits for the answer."""
        if self._presence is not None:
            self._presence.ask()

    def break_off(self, status: Status) -> None:
        """Ends the call with a status, wherever it is."""
        self._end_with = status
        self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class CarriedStream:
    """A streaming call, driven by what comes from either side; its request's task waits for the end alone."""

    def __init__(
        self, router: Router, method: Streaming, deframer: Deframer, receive: Receive, send: Send
    ) -> None:
        self._router = router
        self._method = method
        self._deframer = deframer
        self._receive = receive
        self._send = send
        self._stream: Stream
        self._arrived: deque[bytes] = deque()  # read, and not handed on yet
        self._is_handing_on = False
        self._is_reading = False
        self._is_half_closed = False
        self._presence: Presence | None = None  # once the client has sent all
        self._has_begun = False
        self._untaken: asyncio.Future[None] | None = None  # done when Envoy has taken what was sent last
        self._is_watched = False
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def carry(self, call: Call) -> None:
        """Carries the stream until it is over."""
        self._stream = self._router.open(self._method, call)
        self._stream.on_change = self._on_change
        try:
            self._on_change()
            await self._over
        finally:
            self._stream.on_change = _ignore
            self._router.close(self._stream)
            if self._untaken is not None:
                self._untaken.add_done_callback(_take_note)

    def ask(self) -> None:
        """Finds out whether the client still listens."""
        if self._presence is not None:
            self._presence.ask()

    def break_off(self, status: Status) -> None:
        """Ends the call with a status, wherever it is."""
        self._end(status)

    def _on_change(self) -> None:
        if self._over.done():
            return
        self._send_on()
        if self._stream.is_over:
            self._end(self._stream.status)
        else:
            self._hand_on()

    def _end(self, status: Status | None) -> None:
        if self._over.done():
            return
        self._finish()
        if self._has_begun:
            self._send(_LAST_BODY)
            self._send({"type": _TRAILERS, "headers": wire.trailers(status)})
        else:
            end(self._send, status)

    def _finish(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    # -- From the client ---------------------------------------------------------------------------

    def _hand_on(self) -> None:
        """Gives the stream what it has room for, and then reads on."""
        if self._is_handing_on:  # the stream answered at once: the call that handed on goes on
            return
        arrived, stream = self._arrived, self._stream
        if arrived:
            self._is_handing_on = True
            while arrived and not stream.is_full:
                stream.receive(arrived.popleft())
            self._is_handing_on = False
        if self._is_reading or arrived or stream.is_full or self._over.done():
            return
        if self._presence is None:
            self._is_reading = True
            future_of(self._receive()).add_done_callback(self._on_read)
        elif not self._is_half_closed:
            self._is_half_closed = True
            stream.half_close()

    def _on_read(self, future: "asyncio.Future[Event]") -> None:
        self._is_reading = False
        event = future.result()
        if event["type"] != "http.request":
            self._finish()
            return
        try:
            self._arrived += self._deframer.feed(event["body"])
            if not event["more_body"]:
                self._deframer.close()
                self._presence = Presence(self._receive, self._finish)
        except RefusedError as refused:
            self.break_off(refused.status)
            return
        self._hand_on()

    # -- To the client -----------------------------------------------------------------------------

    def _send_on(self) -> None:
        """Sends all that is ready, once Envoy has taken what was sent before."""
        untaken = self._untaken
        if untaken is not None and not untaken.done():
            if not self._is_watched:
                self._is_watched = True
                untaken.add_done_callback(self._on_taken)
            return
        message = self._stream.take()
        if message is None:
            return
        body = wire.frame(message)
        while (message := self._stream.take()) is not None:
            body += wire.frame(message)
        if not self._has_begun:
            self._has_begun = True
            self._send(_BEGINNING)
        self._untaken = future_of(self._send({"type": BODY, "body": body, "more_body": True}))

    def _on_taken(self, future: "asyncio.Future[None]") -> None:
        self._is_watched = False
        if future.exception() is not None:
            self._finish()
        else:
            self._on_change()


def _take_note(future: "asyncio.Future[None]") -> None:
    future.exception()  # that the client is gone is known, and not to be logged


def _ignore() -> None:
    pass
