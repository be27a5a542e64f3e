"""The fast front: an ASGI application within Envoy, which carries the bytes (docs/adr/0005).

Owns which calls are under way and how they begin and end; each carries itself. What is gRPC's goes by gRPC's
wire, what is of another content type by the door for curl and browsers. Does not know what the methods do.
"""

import asyncio
from typing import Any

from service.config import Address, Config
from service.errors import Code
from service.fronts.envoy import wire
from service.fronts.envoy.calls import BODY, START, Carried, CarriedCall, CarriedStream, Receive, Send, end
from service.fronts.envoy.web.cors import Origins
from service.fronts.envoy.wire import Deframer, Headers
from service.rpc.methods import Call, Unary
from service.rpc.router import Router
from service.rpc.statuses import RefusedError, Status

# Messages somewhat over the bound still arrive, to be refused with their reason, as on the other front.
_HARD_LIMIT_FACTOR = 4
_HEADER_BYTES = 32  # what a header counts beside its name and value, as HTTP/2 has it
_ASK_SECONDS = 0.05  # how often clients with nothing left to send are asked whether they are there
_NOBODY = Call()
_GRPC = (wire.CONTENT_TYPE, wire.CONTENT_TYPE + b"+proto")
_SERVED = b"application/grpc, application/grpc-web, application/json, application/proto"
_SERVING = (
    b"this serves gRPC, gRPC-Web and Connect, by POST with one of these as content-type: " + _SERVED + b"\n"
)
_NO_METHOD = b'{"code": "unimplemented", "message": "no such method: the path is /package.Service/Method"}\n'

Scope = dict[str, Any]


class EnvoyFront:
    """The application, over a router's methods; Envoy listens."""

    def __init__(self, router: Router, settings: Config) -> None:
        self._router = router
        self._listen = settings.listen
        self._hard_limit = _HARD_LIMIT_FACTOR * settings.max_message_bytes
        self._max_metadata_bytes = settings.max_metadata_bytes
        self._has_principals = bool(settings.tls_client_ca)
        # Not at the top: the module is imported where this front is not installed, too.
        from service.fronts.envoy.web.connect import WebDoor

        self._web = WebDoor(router, self._hard_limit)
        self._origins = Origins(settings.cors_origins)
        self._calls: set[Carried] = set()
        self._asking: asyncio.Task[None] | None = None
        self._all_ended = asyncio.Event()

    async def start(self) -> Address:
        """Is ready for calls; returns where Envoy was told to listen."""
        self._asking = asyncio.create_task(self._ask_on())
        return self._listen

    async def stop(self, grace_seconds: float) -> None:
        """Gives calls under way `grace_seconds`, then breaks them off; the router refuses new ones."""
        try:
            async with asyncio.timeout(grace_seconds):
                while self._calls:
                    self._all_ended.clear()
                    await self._all_ended.wait()
        except TimeoutError:
            status = Status(Code.CANCELLED, "the server is stopping: connect again, to another one", b"")
            for call in list(self._calls):
                call.break_off(status)
        if self._asking is not None:
            self._asking.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one HTTP request."""
        headers = dict(scope["headers"])
        content_type = headers.get(b"content-type", b"").split(b";")[0].strip()
        if content_type not in _GRPC:
            await self._serve_web(scope, headers, content_type.lower(), receive, send)
            return
        if (answer := _malformed(scope["method"], headers)) is not None:
            _answer_http(send, *answer)
            return
        try:
            seconds = wire.timeout_seconds(headers.get(b"grpc-timeout"))
            self._check_metadata(headers)
            carried = self._begin(scope["path"], headers, receive, send)
        except RefusedError as refused:
            end(send, refused.status)
            return
        timer = None
        if seconds is not None:
            late = Status(Code.DEADLINE_EXCEEDED, "Deadline Exceeded", b"")
            timer = asyncio.get_running_loop().call_later(seconds, carried.break_off, late)
        self._calls.add(carried)
        try:
            await carried.carry(self._caller(scope))
        finally:
            if timer is not None:
                timer.cancel()
            self._ended(carried)

    async def _serve_web(
        self, scope: Scope, headers: dict[bytes, bytes], content_type: bytes, receive: Receive, send: Send
    ) -> None:
        """Serves a request that is not gRPC's."""
        if (allowed := self._origins.preflight(scope["method"], headers)) is not None:
            _answer_http(send, 204, allowed, b"")
            return
        send = self._origins.over(send, headers)
        if not self._web.takes(content_type):
            _answer_http(send, 415, [(b"accept", _SERVED)], _SERVING)
            return
        carried = self._web.begin(scope, headers, content_type, receive, send)
        if carried is None:
            _answer_http(send, 404, [], _NO_METHOD, b"application/json")
            return
        try:
            self._check_metadata(headers)
        except RefusedError as refused:
            carried.break_off(refused.status)
        self._calls.add(carried)
        try:
            await carried.carry(self._caller(scope))
        finally:
            self._ended(carried)

    def _check_metadata(self, headers: dict[bytes, bytes]) -> None:
        size = len(b"".join(headers)) + len(b"".join(headers.values())) + _HEADER_BYTES * len(headers)
        if size > self._max_metadata_bytes:
            message = f"received metadata larger than max ({size} vs. {self._max_metadata_bytes})"
            raise wire.refused(Code.RESOURCE_EXHAUSTED, message)

    def _ended(self, carried: Carried) -> None:
        self._calls.discard(carried)
        if not self._calls:
            self._all_ended.set()

    def _begin(self, path: str, headers: dict[bytes, bytes], receive: Receive, send: Send) -> Carried:
        method = self._router.methods.get(path)
        if method is None:
            raise wire.refused(Code.UNIMPLEMENTED, "Method not found!")
        deframer = Deframer(self._hard_limit, headers.get(b"grpc-encoding", b""))
        if isinstance(method, Unary):
            self._router.admit(method)
            return CarriedCall(self._router, method, deframer, receive, send)
        return CarriedStream(self._router, method, deframer, receive, send)

    def _caller(self, scope: Scope) -> Call:
        if not self._has_principals:
            return _NOBODY
        return Call(principal=_common_name(scope["extensions"].get("tls", {}).get("client_cert_name") or ""))

    async def _ask_on(self) -> None:
        while True:
            await asyncio.sleep(_ASK_SECONDS)
            for call in list(self._calls):
                call.ask()


def _malformed(method: str, headers: dict[bytes, bytes]) -> tuple[int, Headers, bytes] | None:
    """Returns the HTTP answer (status, headers, text) to a request that no gRPC client makes, else None."""
    if method != "POST":
        return 405, [(b"allow", b"POST")], b"a gRPC call is a POST request\n"
    if headers.get(b"te") != b"trailers":
        return 400, [], b"a gRPC client takes trailers, and says so: te: trailers\n"
    return None


def _answer_http(
    send: Send, status: int, headers: Headers, body: bytes, content_type: bytes = b"text/plain; charset=utf-8"
) -> None:
    send({"type": START, "status": status, "headers": [(b"content-type", content_type), *headers]})
    send({"type": BODY, "body": body})


def _common_name(subject: str) -> str:
    """Returns the CN of a certificate's subject, "" where it has none."""
    for part in subject.split(","):
        name, _, value = part.strip().partition("=")
        if name.upper() == "CN":
            return value.replace("\0", "")
    return ""
