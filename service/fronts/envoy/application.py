"""The envoy front: an ASGI application inside Envoy, which moves the bytes (docs/adr/0005).

Owns the active calls, how they begin and how they end; each call serves itself. gRPC's content types go to
gRPC's wire, other content types to the web protocols. Does not know what the methods do.
"""

import asyncio
import itertools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from service.background import BackgroundTask
from service.config import Address, Config
from service.errors import Code
from service.fronts.envoy import wire
from service.fronts.envoy.arrivals import Arrivals
from service.fronts.envoy.asgi import BODY, START, ActiveCall, Receive, Scope, Send
from service.fronts.envoy.calls import StreamCall, UnaryCall, send_trailers_only
from service.fronts.envoy.credentials import CERTIFICATE_HEADER, Credentials, take_credentials
from service.fronts.envoy.encryption import SecretFiles
from service.fronts.envoy.intake import Intake
from service.fronts.envoy.web.cors import Origins
from service.fronts.envoy.wire import Deframer, Headers
from service.fronts.inflating import inflation_of
from service.rpc.limits import HARD_LIMIT_FACTOR
from service.rpc.methods import ANONYMOUS, Streaming, Unary
from service.rpc.router import Router
from service.rpc.statuses import RefusedError, Status
from service.tls.credentials import ServerCredentials

_HEADER_BYTES = 32  # what HTTP/2 counts for a header beside its name and value
_CHECK_SECONDS = 0.05  # between two checks whether the clients of complete requests are still connected
_GRPC = (wire.CONTENT_TYPE, wire.CONTENT_TYPE + b"+proto")
_SERVED = b"application/grpc, application/grpc-web, application/json, application/proto"
_SERVING = (
    b"this serves gRPC, gRPC-Web and Connect, by POST with one of these as content-type: " + _SERVED + b"\n"
)
_NO_METHOD = b'{"code": "unimplemented", "message": "no such method: the path is /package.Service/Method"}\n'
_NO_CREDENTIALS = Credentials(None, None)
_Method = Unary[Any] | Streaming


class _WebRequest(NamedTuple):
    """A request that is not gRPC's."""

    scope: Scope
    headers: dict[bytes, bytes]
    credentials: Credentials


def _count_nothing(_: str) -> None:
    pass


class EnvoyFront:
    """The ASGI application over a router's methods; Envoy listens.

    Args:
        count_fault: called with the name of a background task that raised.
    """

    def __init__(
        self, router: Router, settings: Config, *, count_fault: Callable[[str], None] = _count_nothing
    ) -> None:
        self._router = router
        self._settings = settings
        self._listen = settings.listen
        self._secrets: SecretFiles | None = None
        self._hard_limit = HARD_LIMIT_FACTOR * settings.max_message_bytes
        self._max_metadata_bytes = settings.max_metadata_bytes
        self._has_certificates = bool(settings.tls_client_ca)
        # Not at the top: this module is also imported where the packages of this front are not installed.
        from service.fronts.envoy.web.connect import WebProtocols

        arrivals = Arrivals(router, settings.arrival_timeout_seconds)
        self._intake = Intake(arrivals, inflation_of(router, settings))
        self._web = WebProtocols(router, settings.max_message_bytes, self._intake)
        self._origins = Origins(settings.cors_origins)
        self._calls: set[ActiveCall] = set()
        self._checking = BackgroundTask("client_check", self._check_clients, count_fault)
        self._none_active = asyncio.Event()

    async def start(self) -> Address:
        """Gets ready for calls; returns the address at which Envoy is configured to listen."""
        self._checking.start()
        return self._listen

    def use_tls(self, _: ServerCredentials) -> None:
        """Makes Envoy show what the TLS files hold to clients that connect from now on."""
        if self._secrets is None:
            self._secrets = SecretFiles.inherited(os.environ)
        self._secrets.renew(self._settings)

    async def stop(self, grace_seconds: float) -> bool:
        """Waits `grace_seconds` for active calls, then aborts them; returns whether all ended by themselves.

        The router refuses new calls meanwhile.
        """
        all_ended = True
        try:
            async with asyncio.timeout(grace_seconds):
                while self._calls:
                    self._none_active.clear()
                    await self._none_active.wait()
        except TimeoutError:
            all_ended = False
            status = Status(Code.CANCELLED, "the server is stopping: connect again, to another one", b"")
            for call in list(self._calls):
                call.abort(status)
        await self._checking.stop()
        return all_ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one HTTP request."""
        pairs = scope["headers"]
        headers = dict(pairs)
        credentials = _NO_CREDENTIALS
        if self._router.asks_who_calls:
            credentials = take_credentials(headers, has_certificate=self._has_certificates)
            if self._has_certificates:  # Envoy's header is no part of what the client sent
                pairs[:] = [pair for pair in pairs if pair[0] != CERTIFICATE_HEADER]
        content_type = headers.get(b"content-type", b"").split(b";")[0].strip()
        if content_type not in _GRPC:
            request = _WebRequest(scope, headers, credentials)
            await self._serve_web(request, content_type.lower(), receive, send)
            return
        if (answer := _malformed(scope["method"], headers)) is not None:
            _answer_http(send, *answer)
            return
        try:
            seconds = wire.timeout_seconds(headers.get(b"grpc-timeout"))
            self._check_metadata(pairs)
            method = self._method(scope["path"])
            caller = self._router.caller(method, *credentials)
            call = self._begin(method, headers, receive, send)
        except RefusedError as refused:
            send_trailers_only(send, refused.status)
            return
        timer = None
        if seconds is not None:
            late = Status(Code.DEADLINE_EXCEEDED, "Deadline Exceeded", b"")
            timer = asyncio.get_running_loop().call_later(seconds, call.abort, late)
        self._calls.add(call)
        pairs.clear()  # the call may last, and needs its headers no more
        del headers
        try:
            await call.serve(caller)
        finally:
            if timer is not None:
                timer.cancel()
            self._remove(call)

    async def _serve_web(
        self, request: "_WebRequest", content_type: bytes, receive: Receive, send: Send
    ) -> None:
        """Serves a request whose content type is not gRPC's."""
        scope, headers, credentials = request
        if (allowed := self._origins.preflight(scope["method"], headers)) is not None:
            _answer_http(send, 204, allowed, b"")
            return
        send = self._origins.with_cors(send, headers)
        if not self._web.accepts(content_type):
            _answer_http(send, 415, [(b"accept", _SERVED)], _SERVING)
            return
        call = self._web.begin(scope, headers, content_type, receive, send)
        if call is None:
            _answer_http(send, 404, [], _NO_METHOD, content_type=b"application/json")
            return
        caller = ANONYMOUS
        try:
            self._check_metadata(scope["headers"])
            method = self._method(call.path)
            caller = self._router.caller(method, *credentials)
            self._router.admit_call(method, len(self._calls))
        except RefusedError as refused:
            call.abort(refused.status)
        self._calls.add(call)
        try:
            await call.serve(caller)
        finally:
            self._remove(call)

    def _check_metadata(self, pairs: Headers) -> None:
        size = len(b"".join(itertools.chain.from_iterable(pairs))) + _HEADER_BYTES * len(pairs)
        if size > self._max_metadata_bytes:
            message = f"received metadata larger than max ({size} vs. {self._max_metadata_bytes})"
            raise wire.refused(Code.RESOURCE_EXHAUSTED, message)

    def _remove(self, call: ActiveCall) -> None:
        self._calls.discard(call)
        self._intake.arrivals.forget(call)
        if not self._calls:
            self._none_active.set()

    def _method(self, path: str) -> _Method:
        method = self._router.methods.get(path)
        if method is None:
            raise wire.refused(Code.UNIMPLEMENTED, "Method not found!")
        return method

    def _begin(
        self, method: _Method, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> ActiveCall:
        self._router.admit_call(method, len(self._calls))
        deframer = Deframer(self._hard_limit, headers.get(b"grpc-encoding", b""))
        if isinstance(method, Unary):
            self._router.admit(method)
            return UnaryCall(
                self._router, method, deframer=deframer, intake=self._intake, receive=receive, send=send
            )
        return StreamCall(
            self._router, method, deframer=deframer, intake=self._intake, receive=receive, send=send
        )

    async def _check_clients(self) -> None:
        await asyncio.sleep(_CHECK_SECONDS)
        self._intake.arrivals.end_late()
        for call in list(self._calls):
            call.check_client()


def _malformed(method: str, headers: dict[bytes, bytes]) -> tuple[int, Headers, bytes] | None:
    """Returns the HTTP answer (status, headers, text) to a request that no gRPC client makes, or None."""
    if method != "POST":
        return 405, [(b"allow", b"POST")], b"a gRPC call is a POST request\n"
    if headers.get(b"te") != b"trailers":
        return 400, [], b"a gRPC client takes trailers, and says so: te: trailers\n"
    return None


def _answer_http(
    send: Send,
    status: int,
    headers: Headers,
    body: bytes,
    *,
    content_type: bytes = b"text/plain; charset=utf-8",
) -> None:
    send({"type": START, "status": status, "headers": [(b"content-type", content_type), *headers]})
    send({"type": BODY, "body": body})
