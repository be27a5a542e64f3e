"""The door for curl and browsers: a router's unary methods by the Connect protocol and gRPC-Web.

connectrpc speaks both; here its calls are tied to the front's. Streams need gRPC, and whoever asks for one is
told so. Does not know what the methods do.
"""

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NoReturn

from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from service.errors import Reason, StreamcellError
from service.fronts.envoy.calls import Event, Presence, Receive, Send
from service.fronts.envoy.web import grpc_web_text
from service.fronts.envoy.web.encoding import CODECS, Given, connect_error, from_json, to_json
from service.rpc.methods import Call, Streaming, Unary
from service.rpc.router import Router
from service.rpc.statuses import RefusedError, Status
from service.telemetry import faults

_GRPC_WEB = b"application/grpc-web"
_STREAMS = (b"application/connect+proto", b"application/connect+json")
_CONTENT_TYPES = {  # what is taken, and what the library knows it by
    **{each: each for each in (b"application/json", b"application/proto", *_STREAMS)},
    **{each: each for each in (_GRPC_WEB, _GRPC_WEB + b"+proto", _GRPC_WEB + b"+json")},
    **dict.fromkeys(
        (grpc_web_text.CONTENT_TYPE, grpc_web_text.CONTENT_TYPE + b"+proto"), _GRPC_WEB + b"+proto"
    ),
}
# What the library reads of a request; all else stays outside, as it has no answer to odd bytes.
_HEADERS = {
    b"accept-encoding", b"connect-accept-encoding", b"connect-content-encoding", b"connect-protocol-version",
    b"connect-timeout-ms", b"content-encoding", b"grpc-accept-encoding", b"grpc-encoding", b"grpc-timeout",
}  # fmt: skip


class _Application(ConnectASGIApplication[None]):
    """The library's application over these endpoints."""

    path = "/"

    def __init__(self, endpoints: Mapping[str, Any], max_bytes: int) -> None:
        super().__init__(service=None, endpoints=lambda _: endpoints, read_max_bytes=max_bytes, codecs=CODECS)
        self.paths = frozenset(endpoints)


class WebDoor:
    """The methods of a router that have a descriptor, for web clients.

    Args:
        router: the methods.
        max_bytes: the largest request that is read at all, packed and unpacked.
    """

    def __init__(self, router: Router, max_bytes: int) -> None:
        calls, streams = {}, {}
        for path, method in router.methods.items():
            if (descriptor := _descriptor(path)) is None:
                continue
            if isinstance(method, Unary):
                answer = _UnaryMethod(router, method, descriptor).answer
            else:
                refusal = _StreamingMethod(router, method)
                answer = refusal.answer
                streams[path] = Endpoint.bidi_stream(_info(path, StreamType.BIDI_STREAM), refusal.converse)
            calls[path] = Endpoint.unary(_info(path, StreamType.UNARY), answer)
        self._calls, self._streams = _Application(calls, max_bytes), _Application(streams, max_bytes)

    @staticmethod
    def takes(content_type: bytes) -> bool:
        """Tells whether requests of this content type come in here."""
        return content_type in _CONTENT_TYPES

    def begin(
        self, scope: Event, headers: dict[bytes, bytes], content_type: bytes, receive: Receive, send: Send
    ) -> "CarriedWeb | None":
        """Returns a call of a content type that is taken, None where there is no such method."""
        application = self._streams if content_type in _STREAMS else self._calls
        if scope["path"] not in application.paths:
            return None
        if content_type.startswith(grpc_web_text.CONTENT_TYPE):
            receive, send = grpc_web_text.as_bytes(receive), grpc_web_text.as_text(send)
        known = [(name, value) for name, value in headers.items() if name in _HEADERS and value.isascii()]
        scope = {**scope, "headers": [*known, (b"content-type", _CONTENT_TYPES[content_type])]}
        return CarriedWeb(application, scope, receive, send)


def _descriptor(path: str) -> MethodDescriptor | None:
    service, _, name = path[1:].rpartition("/")
    try:
        found = descriptor_pool.Default().FindServiceByName(service)
    except KeyError:
        return None
    return found.methods_by_name.get(name)


def _info(path: str, kind: StreamType) -> MethodInfo[Given, bytes]:
    service, _, name = path[1:].rpartition("/")
    return MethodInfo(
        name=name,
        service_name=service,
        input=Given,
        output=bytes,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=kind,
    )


class _UnaryMethod:
    """A method as the library calls it."""

    def __init__(self, router: Router, method: "Unary[Any]", descriptor: MethodDescriptor) -> None:
        self._router = router
        self._method = method
        self._request_type = GetMessageClass(descriptor.input_type)
        self._response_type = GetMessageClass(descriptor.output_type)

    async def answer(self, given: Given, _: Any) -> bytes:
        """Returns a response as the request came: in bytes, or in JSON."""
        under_way = _UNDER_WAY.get()
        try:
            return await self._answer(given, under_way)
        except RefusedError as refused:
            raise connect_error(refused.status) from None
        except StreamcellError as error:
            raise connect_error(self._router.refuse(self._method.path, error).status) from None
        except asyncio.CancelledError:
            if under_way.end_with is None:
                raise
            raise connect_error(under_way.end_with) from None
        except Exception as exception:  # the library would tell the caller what it says
            fault = faults.report(exception)
            raise connect_error(self._router.refuse(self._method.path, fault).status) from None

    async def _answer(self, given: Given, under_way: "CarriedWeb") -> bytes:
        if under_way.end_with is not None:
            raise RefusedError(under_way.end_with)
        if not given.is_json:
            return await self._router.answer(self._method, given.data, under_way.call)
        self._router.check_size(given.data)
        raw = await from_json(given.data, self._request_type)
        return await to_json(
            await self._router.answer(self._method, raw, under_way.call), self._response_type
        )


class _StreamingMethod:
    """A method that is not to be had here."""

    def __init__(self, router: Router, method: Streaming) -> None:
        self._router = router
        self._path = method.path

    async def answer(self, given: Given, _: Any) -> bytes:
        """Refuses a call."""
        self._refuse()

    def converse(self, requests: Any, _: Any) -> NoReturn:
        """Refuses a stream."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        name = self._path.rpartition("/")[2]
        message = f"{name} is a stream, which takes a gRPC client (application/grpc); here are unary methods"
        error = StreamcellError(Reason.NOT_IMPLEMENTED, message)
        raise connect_error(self._router.refuse(self._path, error).status)


class CarriedWeb:
    """A web client's call, in its request's task."""

    call: Call

    def __init__(self, application: _Application, scope: Event, receive: Receive, send: Send) -> None:
        self.end_with: Status | None = None
        self._application: Any = application  # its types are asgiref's, which is not installed
        self._scope = scope
        self._receive = receive
        self._send = send
        self._task: asyncio.Task[Any] | None = None
        self._presence: Presence | None = None  # once the client has sent all
        self._gone = asyncio.Event()

    async def carry(self, call: Call) -> None:
        """Has the library answer."""
        self.call = call
        self._task = asyncio.current_task()
        _UNDER_WAY.set(self)
        try:
            await self._application(self._scope, self._next, self._send)
        except asyncio.CancelledError:
            if self.end_with is None:
                raise
        except Exception as exception:
            if not self._gone.is_set():  # else what was sent has nobody to take it
                faults.report(exception)

    async def _next(self) -> Event:
        """Returns what the client sends; once that is all, waits until it is gone."""
        if self._presence is not None:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        event = await self._receive()
        if event["type"] != "http.request":
            self._gone.set()
        elif not event["more_body"]:
            self._presence = Presence(self._receive, self._gone.set)
        return event

    def ask(self) -> None:
        """Finds out whether the client still waits for the answer."""
        if self._presence is not None:
            self._presence.ask()

    def break_off(self, status: Status) -> None:
        """Ends the call with a status: at once, or as soon as it begins."""
        self.end_with = status
        if self._task is not None:
            self._task.cancel()


_UNDER_WAY: ContextVar[CarriedWeb] = ContextVar("under_way")
