"""A router's unary methods for curl and browsers, by the Connect protocol and gRPC-Web.

connectrpc speaks both protocols; this module ties its calls to the front's active calls. Streams need gRPC,
and the error for a stream says so. Does not know what the methods do.
"""

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, NoReturn

from connectrpc.compression.gzip import GzipCompression
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from service import errors, futures
from service.errors import Reason, StreamcellError
from service.fronts.envoy.asgi import DisconnectCheck, Event, Receive, Send, uncancelled
from service.fronts.envoy.intake import Intake
from service.fronts.envoy.web import grpc_web_text
from service.fronts.envoy.web.encoding import CODECS, EncodedRequest, connect_error, from_json, to_json
from service.rpc.limits import HARD_LIMIT_FACTOR
from service.rpc.methods import Call, Streaming, Unary
from service.rpc.router import Router
from service.rpc.statuses import RefusedError, Status
from service.telemetry import faults

_CLIENT_GONE = "ClientDisconnectedError"  # pyvoy's, which only Python inside Envoy can import
_GRPC_WEB = b"application/grpc-web"
_STREAMS = (b"application/connect+proto", b"application/connect+json")
_CONTENT_TYPES = {  # each content type that is accepted, and the library's name for it
    **{each: each for each in (b"application/json", b"application/proto", *_STREAMS)},
    **{each: each for each in (_GRPC_WEB, _GRPC_WEB + b"+proto", _GRPC_WEB + b"+json")},
    **dict.fromkeys(
        (grpc_web_text.CONTENT_TYPE, grpc_web_text.CONTENT_TYPE + b"+proto"), _GRPC_WEB + b"+proto"
    ),
}
# The headers that the library reads. It gets no others, as it cannot deal with headers that are not text.
_HEADERS = {
    b"accept-encoding", b"connect-accept-encoding", b"connect-content-encoding", b"connect-protocol-version",
    b"connect-timeout-ms", b"content-encoding", b"grpc-accept-encoding", b"grpc-encoding", b"grpc-timeout",
}  # fmt: skip


_ENCODINGS = (b"content-encoding", b"connect-content-encoding", b"grpc-encoding")


class _BoundedGzip(GzipCompression):
    """Gzip whose messages have a bound of their own, below the one for bytes that come as they are."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._max_bytes = max_bytes

    def decompress(self, data: bytes | bytearray | memoryview, read_max_bytes: int | None = None) -> bytes:
        return super().decompress(data, self._max_bytes)


class _Application(ConnectASGIApplication[None]):
    """The library's application over some endpoints."""

    path = "/"

    def __init__(self, endpoints: Mapping[str, Any], max_message_bytes: int) -> None:
        super().__init__(
            service=None,
            endpoints=lambda _: endpoints,
            read_max_bytes=HARD_LIMIT_FACTOR * max_message_bytes,
            compressions=[_BoundedGzip(max_message_bytes)],
            codecs=CODECS,
        )
        self.paths = frozenset(endpoints)


class WebProtocols:
    """The methods of a router that have a descriptor, for web clients.

    Args:
        max_message_bytes: the largest request, decompressed. Of a larger one, the refusal needs four times as
            many bytes to be read.
        intake: what the requests of all calls share on their way in.
    """

    def __init__(self, router: Router, max_message_bytes: int, intake: Intake) -> None:
        self._intake = intake
        calls, streams = {}, {}
        for path, method in router.methods.items():
            if (descriptor := _descriptor(path)) is None:
                continue
            if isinstance(method, Unary):
                answer = _UnaryMethod(router, method, descriptor).answer
            else:
                streaming = _StreamingMethod(router, method)
                answer = streaming.answer
                streams[path] = Endpoint.bidi_stream(_info(path, StreamType.BIDI_STREAM), streaming.converse)
            calls[path] = Endpoint.unary(_info(path, StreamType.UNARY), answer)
        self._calls, self._streams = (_Application(each, max_message_bytes) for each in (calls, streams))

    @staticmethod
    def accepts(content_type: bytes) -> bool:
        """Returns whether a content type belongs to one of the web protocols."""
        return content_type in _CONTENT_TYPES

    def begin(
        self, scope: Event, headers: dict[bytes, bytes], content_type: bytes, receive: Receive, send: Send
    ) -> "WebCall | None":
        """Returns the call of a request with an accepted content type; None if there is no such method."""
        application = self._streams if content_type in _STREAMS else self._calls
        if scope["path"] not in application.paths:
            return None
        receive, send = _uncancelled(receive, send)
        if content_type.startswith(grpc_web_text.CONTENT_TYPE):
            receive, send = grpc_web_text.as_bytes(receive), grpc_web_text.as_text(send)
        known = [(name, value) for name, value in headers.items() if name in _HEADERS and value.isascii()]
        scope = {**scope, "headers": [*known, (b"content-type", _CONTENT_TYPES[content_type])]}
        is_packed = any(headers.get(name, b"identity") != b"identity" for name in _ENCODINGS)
        return WebCall(application, scope, receive, send, intake=self._intake, is_packed=is_packed)


def _uncancelled(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Returns a `receive` and a `send` for the library's tasks, which may be cancelled while they wait."""
    return lambda: uncancelled(receive()), lambda event: uncancelled(send(event))


def _descriptor(path: str) -> MethodDescriptor | None:
    service, _, name = path[1:].rpartition("/")
    try:
        found = descriptor_pool.Default().FindServiceByName(service)
    except KeyError:
        return None
    return found.methods_by_name.get(name)


def _info(path: str, kind: StreamType) -> MethodInfo[EncodedRequest, bytes]:
    service, _, name = path[1:].rpartition("/")
    return MethodInfo(
        name=name,
        service_name=service,
        input=EncodedRequest,
        output=bytes,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=kind,
    )


class _UnaryMethod:
    """A unary method as the library calls it."""

    def __init__(self, router: Router, method: "Unary[Any]", descriptor: MethodDescriptor) -> None:
        self._router = router
        self._method = method
        self._request_type = GetMessageClass(descriptor.input_type)
        self._response_type = GetMessageClass(descriptor.output_type)

    async def answer(self, request: EncodedRequest, _: Any) -> bytes:
        """Returns the response in the encoding of the request: bytes or JSON."""
        active = _ACTIVE_CALL.get()
        try:
            return await self._answer(request, active)
        except RefusedError as refused:
            raise connect_error(refused.status) from None
        except StreamcellError as error:
            raise connect_error(self._router.refuse(self._method.path, error).status) from None
        except asyncio.CancelledError:
            if active.abort_status is None:
                raise
            raise connect_error(active.abort_status) from None
        except Exception as exception:  # the library would send the exception's text to the caller
            fault = faults.report(exception)
            raise connect_error(self._router.refuse(self._method.path, fault).status) from None

    async def _answer(self, request: EncodedRequest, active: "WebCall") -> bytes:
        if active.abort_status is not None:
            raise RefusedError(active.abort_status)
        if not request.is_json:
            return await self._router.answer(self._method, request.raw, active.call)
        self._router.check_size(request.raw)
        raw = await from_json(request.raw, self._request_type)
        return await to_json(await self._router.answer(self._method, raw, active.call), self._response_type)


class _StreamingMethod:
    """A streaming method, which the web protocols cannot serve."""

    def __init__(self, router: Router, method: Streaming) -> None:
        self._router = router
        self._path = method.path

    async def answer(self, request: EncodedRequest, _: Any) -> bytes:
        """Refuses a call."""
        self._refuse()

    def converse(self, requests: Any, _: Any) -> NoReturn:
        """Refuses a stream."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        name = self._path.rpartition("/")[2]
        error = errors.refusal(Reason.NOT_IMPLEMENTED, method=name)
        raise connect_error(self._router.refuse(self._path, error).status)


class WebCall:
    """A web client's call, served in its request's task."""

    call: Call

    def __init__(
        self,
        application: _Application,
        scope: Event,
        receive: Receive,
        send: Send,
        *,
        intake: Intake,
        is_packed: bool,
    ) -> None:
        self.abort_status: Status | None = None
        self.path: str = scope["path"]
        self.is_reading = True
        self._intake = intake
        self._is_packed = is_packed
        self._num_received_bytes = 0
        self._application: Any = application  # the application's types are asgiref's, which is not installed
        self._scope = scope
        self._receive = receive
        self._send = send
        self._task: asyncio.Task[Any] | None = None
        self._disconnect_check: DisconnectCheck | None = None  # set once the request is complete
        self._disconnected = asyncio.Event()

    async def serve(self, call: Call) -> None:
        """Serves the call through the library and returns when it is over."""
        self.call = call
        self._task = asyncio.current_task()
        _ACTIVE_CALL.set(self)
        try:
            await self._application(self._scope, self._next, self._send)
        except asyncio.CancelledError:
            if self.abort_status is None:
                raise
        except Exception as exception:
            # To send to a client that is gone fails, and is no fault; pyvoy may know before the next check.
            is_gone = self._disconnected.is_set() or type(exception).__name__ == _CLIENT_GONE
            if not is_gone:
                faults.report(exception)

    async def _next(self) -> Event:
        """Returns the client's next event; after a complete request the only event is the disconnect."""
        if self._disconnect_check is not None:
            await self._disconnected.wait()
            return {"type": "http.disconnect"}
        arrivals = self._intake.arrivals
        if not self._num_received_bytes:
            arrivals.expect(self)
        try:
            event = await self._receive()
        except asyncio.CancelledError:
            if self.abort_status is None:
                raise
            raise connect_error(self.abort_status) from None
        if event["type"] != "http.request":
            self._disconnected.set()
            return event
        self._num_received_bytes += len(event["body"])
        if event["more_body"]:
            arrivals.note(self, self._num_received_bytes)
            return event
        arrivals.forget(self)
        if self._is_packed:  # the library inflates the request as soon as it has this event
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._intake.inflation.reserve(self._num_received_bytes, partial(futures.sets(turn), None))
            await turn
        self._disconnect_check = DisconnectCheck(self._receive, self._disconnected.set)
        return event

    def check_client(self) -> None:
        """Checks whether the client still waits for the answer."""
        if self._disconnect_check is not None:
            self._disconnect_check.run()

    def abort(self, status: Status) -> None:
        """Ends the call with a status: at once, or as soon as it begins."""
        self.abort_status = status
        if self._task is not None:
            self._task.cancel()


_ACTIVE_CALL: ContextVar[WebCall] = ContextVar("active_call")
