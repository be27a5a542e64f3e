"""The portable front: grpcio's asyncio server moves the bytes.

Alone in knowing gRPC's server. Does not know what the methods do.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import grpc
from grpc import aio

from service import addresses
from service.config import LARGEST, Address, Config
from service.errors import ConfigError
from service.fronts.inflating import inflated, inflation_of
from service.rpc.inflation import Inflation, recognised
from service.rpc.limits import HARD_LIMIT_FACTOR
from service.rpc.methods import ANONYMOUS, Call, Streaming, Unary
from service.rpc.router import Router
from service.rpc.statuses import RefusedError, Status
from service.rpc.stream import Stream
from service.tls.credentials import ServerCredentials

_CODES = {code.value[0]: code for code in grpc.StatusCode}
# Calls spend some turns of the loop in gRPC's core before this module sees them. The wait for quiet therefore
# counts naps, not time: a loop that was blocked saw no calls either, and that proves nothing.
_NAP_SECONDS = 0.01
_QUIET_NAPS = 5
_MAX_QUIET_SECONDS = 1.0  # the longest wait for quiet, as some clients call again and again
_HANDSHAKE_SECONDS = 10.0  # the longest that a connection may take to begin
_ARRIVING_CALLS = 64  # beside the calls that methods have received: their requests are arriving
_MANY_BYTES = 4096  # more than the buffer of a socket pair holds when each byte is written alone
# gRPC ends a connection on which pings come faster; clients may ping each second.
_MIN_PING_MILLISECONDS = 500
_LIBRARY_LOG = "grpc._cython.cygrpc"
_ENDED_CALL = "ExecuteBatchError"  # the library's private name for: the call takes no more operations
_PACKED_STARTS = (b"\x1f", b"x")  # the first bytes of compressed messages, and of some others
_GetCall = Callable[["aio.ServicerContext[bytes, bytes]"], Call]
_Method = Unary[Any] | Streaming


class GrpcioFront:
    """One listening server over a router's methods.

    Args:
        count_fault: unused, as this front has no background task; all fronts are made alike.
    """

    def __init__(
        self, router: Router, settings: Config, *, count_fault: Callable[[str], None] | None = None
    ) -> None:
        self._router = router
        logging.getLogger(_LIBRARY_LOG).addFilter(_is_news)
        with _wake_ups_read_together():
            self._server = aio.server(
                options=_options(settings),
                maximum_concurrent_rpcs=settings.max_active_calls + _ARRIVING_CALLS,
            )
        self._calls = _ActiveCalls()
        inflation = inflation_of(router, settings)
        self._server.add_generic_rpc_handlers((_Methods(router, self._calls, inflation),))
        self._settings = settings
        self._tls: ServerCredentials | None = None

    def use_tls(self, credentials: ServerCredentials) -> None:
        """Shows these certificates to clients that connect from now on. Before `start`, at least once."""
        self._tls = credentials

    def _current_tls(self) -> ServerCredentials:
        if self._tls is None:
            raise RuntimeError("the front was started before it was given certificates")
        return self._tls

    async def start(self) -> Address:
        """Begins to serve and returns the address; port 0 is replaced by the port in use.

        Raises:
            ConfigError: the address is taken or not this machine's.
        """
        listen = self._settings.listen
        with contextlib.ExitStack() as held:
            if self._settings.workers == 1:  # a supervisor keeps the port of several
                is_shared = self._settings.shares_port
                held_port = await addresses.hold(listen, "--listen", is_shared=is_shared)
                held.callback(held_port.close)
                listen = held_port.address
            for host in listen.hosts:
                listen = Address(listen.host, self._listen_on(Address(host, listen.port)))
            await self._server.start()
        return listen

    def _listen_on(self, address: Address) -> int:
        try:
            if self._settings.tls_cert:
                return self._server.add_secure_port(str(address), _credentials(self._current_tls))
            return self._server.add_insecure_port(str(address))
        except RuntimeError:
            what = "--tls-*: a file's content" if self._settings.tls_cert else f"--listen: {address}"
            raise ConfigError(f"{what} is nothing that gRPC can use; its lines above say more") from None

    async def stop(self, grace_seconds: float) -> bool:
        """Waits `grace_seconds` for active calls, then cancels them; returns whether all ended by themselves.

        The router refuses new calls meanwhile.

        Once gRPC's server stops, it cancels every call that reaches it and every call that it has not passed
        on yet, without a reason. So it stops last: when the active calls have ended, the calls that came
        meanwhile are refused and no more come. If clients keep calling without a pause, gRPC still cancels
        the calls on their way at that moment; no method has seen them.
        """
        now = asyncio.get_running_loop().time
        deadline, all_ended = now() + grace_seconds, False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._calls.wait_until_none()
            all_ended = True
            async with asyncio.timeout(min(_MAX_QUIET_SECONDS, (deadline - now()) / 2)):
                await self._calls.wait_until_quiet()
        await self._server.stop(max(0.0, deadline - now()))
        return all_ended


def _is_news(record: logging.LogRecord) -> bool:
    """Returns whether a line of grpcio's is worth its place in the log: an answer to an ended call is not.

    A call may run out of time, or be cancelled, while its answer is sent. That is the client's business.
    """
    return not (record.exc_info and record.exc_info[0] and record.exc_info[0].__name__ == _ENDED_CALL)


class _WakeUpSocket(socket.socket):
    """The socket by which grpcio's poller wakes the loop, with one byte for each event.

    grpcio handles all events in one turn of the loop but reads only one byte. When turns are long, the bytes
    pile up until the poller can write no more. The poller and every call are then stuck until three quarters
    of the bytes are read: 200 turns, or half a second beside clients that prime. So the first turn reads all.
    """

    __slots__ = ()

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Reads every waiting byte and returns the first `size`."""
        return super().recv(_MANY_BYTES, flags)[:size]


@contextlib.contextmanager
def _wake_ups_read_together() -> Iterator[None]:
    """Replaces the socket pair that grpcio makes within the block by one that reads all wake-ups at once."""
    make = socket.socketpair

    def pair() -> tuple[socket.socket, socket.socket]:
        reader, writer = make()
        return _WakeUpSocket(fileno=reader.detach()), writer

    socket.socketpair = pair  # type: ignore[assignment]  # grpcio's only call of it has no arguments
    try:
        yield
    finally:
        socket.socketpair = make


class _ActiveCalls:
    """Counts the calls that a method has received and not answered; each call is one `with` block."""

    def __init__(self) -> None:
        self.num_active = 0
        self._num_ended = 0
        self._none_active = asyncio.Event()

    def __enter__(self) -> None:
        self.num_active += 1

    def __exit__(self, *_: object) -> None:
        self.num_active -= 1
        self._num_ended += 1
        if not self.num_active:
            self._none_active.set()

    async def wait_until_none(self) -> None:
        """Waits until no call is active."""
        while self.num_active:
            self._none_active.clear()
            await self._none_active.wait()

    async def wait_until_quiet(self) -> None:
        """Waits until no call has ended, by a refusal for example, during several naps in a row."""
        num_naps = 0
        while num_naps < _QUIET_NAPS:
            num_ended = self._num_ended
            await asyncio.sleep(_NAP_SECONDS)
            num_naps = num_naps + 1 if num_ended == self._num_ended else 0


class _Methods(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs alone
    """The router's methods as gRPC's server calls them; a path without a method is UNIMPLEMENTED."""

    def __init__(self, router: Router, calls: _ActiveCalls, inflation: Inflation) -> None:
        self._router = router
        self._calls = calls
        self._methods = {
            path: _grpc_method(router, method, calls, _get_call(router, method), inflation)
            for path, method in router.methods.items()
        }

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        path = handler_call_details.method
        found = self._methods.get(path)
        if found is not None:
            try:
                self._router.admit_call(self._router.methods[path], self._calls.num_active)
            except RefusedError as refused:
                return _refusing(refused.status)
        return found


def _refusing(status: Status) -> "grpc.RpcMethodHandler[Any, Any]":
    """Returns a method that refuses every call; as a streaming one it does not wait for the request."""

    async def refuse(_: Any, context: "aio.ServicerContext[bytes, bytes]") -> None:
        await _abort(context, status)

    return grpc.stream_stream_rpc_method_handler(cast(Any, refuse))


def _grpc_method(
    router: Router,
    method: "Unary[Any] | Streaming",
    calls: _ActiveCalls,
    get_call: _GetCall,
    inflation: Inflation,
) -> "grpc.RpcMethodHandler[Any, Any]":
    if isinstance(method, Unary):
        return grpc.unary_unary_rpc_method_handler(_unary_method(router, method, calls, get_call, inflation))
    return grpc.stream_stream_rpc_method_handler(
        _streaming_method(router, method, calls, get_call, inflation)
    )


def _unary_method(
    router: Router, method: "Unary[Any]", calls: _ActiveCalls, get_call: _GetCall, inflation: Inflation
) -> Any:
    async def answer(raw: bytes, context: "aio.ServicerContext[bytes, bytes]") -> bytes:
        try:
            with calls:
                call = get_call(context)  # first: whoever may not call must not make the server inflate
                message = raw if raw[:1] not in _PACKED_STARTS else await _inflated(raw, inflation)
                return await router.answer(method, message, call)
        except RefusedError as refused:
            status = refused.status
        # Out of the block above, and without the message: gRPC keeps the exception that `abort` raises, and
        # with it all that the frames hold, until the garbage collector comes by.
        raw = message = b""
        await _abort(context, status)
        raise AssertionError  # abort has raised

    return answer


def _streaming_method(
    router: Router, method: Streaming, calls: _ActiveCalls, get_call: _GetCall, inflation: Inflation
) -> Any:
    async def serve(_: Any, context: "aio.ServicerContext[bytes, bytes]") -> None:
        try:
            call = get_call(context)
        except RefusedError as refused:
            await _abort(context, refused.status)
            raise AssertionError from None  # abort has raised
        stream = router.open(method, call)
        flow = _FlowControl(stream)
        reader = asyncio.create_task(_read(stream, flow, context, inflation))
        try:
            with calls:
                await _write(stream, flow, context)
            if stream.status is not None:
                await _abort(context, stream.status)
        finally:
            reader.cancel()
            router.close(stream)

    return serve


async def _write(stream: Stream, flow: "_FlowControl", context: "aio.ServicerContext[bytes, bytes]") -> None:
    while not stream.is_over:
        while (message := stream.take()) is not None:
            flow.notify_reader()
            await context.write(message)
        if not stream.is_over:
            await flow.wait_for_message()


async def _read(
    stream: Stream,
    flow: "_FlowControl",
    context: "aio.ServicerContext[bytes, bytes]",
    inflation: Inflation,
) -> None:
    while isinstance(raw := cast(object, await context.read()), bytes):  # anything but bytes is the end
        if raw[:1] in _PACKED_STARTS:
            try:
                raw = await _inflated(raw, inflation)
            except RefusedError as refused:
                stream.break_off(refused.status)
                return
        stream.receive(raw)
        raw = b""  # which the wait for the next message would keep, 4 MB for each stream
        while stream.is_full:
            await flow.wait_for_room()
    stream.half_close()


async def _inflated(raw: bytes, inflation: Inflation) -> bytes:
    """Returns a message that is compressed, if its first bytes say so, as what it inflates to.

    gRPC would inflate messages without a bound, so it hands them over as they came.

    Raises:
        RefusedError: the message is too large, or does not inflate.
    """
    packed = recognised(raw)
    return raw if packed is None else await inflated(packed, inflation)


class _FlowControl:
    """Suspends a stream's writer until there is a message or the end, and its reader until there is room."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._message: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        stream.on_change = self._notify

    async def wait_for_message(self) -> None:
        self._message = asyncio.get_running_loop().create_future()
        await self._message
        self._message = None

    async def wait_for_room(self) -> None:
        self._room = asyncio.get_running_loop().create_future()
        await self._room
        self._room = None

    def notify_reader(self) -> None:
        if self._room is not None and not self._room.done() and not self._stream.is_full:
            self._room.set_result(None)

    def _notify(self) -> None:
        if self._message is not None and not self._message.done():
            self._message.set_result(None)
        self.notify_reader()


async def _abort(context: "aio.ServicerContext[bytes, bytes]", status: Status) -> None:
    await context.abort(_CODES[status.code], status.message, tuple(status.trailers))


def _get_call(router: Router, method: _Method) -> _GetCall:
    """Returns the function that finds a call's caller, and asks gRPC only if callers must show it."""
    if not router.asks_who_calls or method.is_public:
        return lambda _: ANONYMOUS

    def call_of(context: "aio.ServicerContext[bytes, bytes]") -> Call:
        certificates = list(context.auth_context().get("x509_pem_cert", []))
        # Several values are joined, as HTTP has it and as Envoy does: they are then no token.
        shown = [
            _as_bytes(each) for name, each in context.invocation_metadata() or () if name == "authorization"
        ]
        return router.caller(
            method, certificates[0] if certificates else None, b",".join(shown) if shown else None
        )

    return call_of


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def _credentials(current: Callable[[], ServerCredentials]) -> grpc.ServerCredentials:
    """Returns credentials of one port that change when `current`, asked for each connection, changes."""
    used = current()

    def change() -> Any:
        # On gRPC's thread. Two connections at once may both take the same change: that costs a little time.
        nonlocal used
        latest = current()
        if latest is used:
            return None
        used = latest
        return _certificates(latest)

    return grpc.dynamic_ssl_server_credentials(
        _certificates(used), change, require_client_authentication=used.client_ca is not None
    )


def _certificates(tls: ServerCredentials) -> grpc.ServerCertificateConfiguration:
    """Returns the certificates as gRPC takes them, once."""
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.chain)], tls.client_ca)


def _options(settings: Config) -> list[tuple[str, int]]:
    return [
        # By this option workers share a port, and a port is kept until gRPC listens. Otherwise a second
        # server would share it silently.
        ("grpc.so_reuseport", int(settings.shares_port)),
        ("grpc.max_receive_message_length", min(HARD_LIMIT_FACTOR * settings.max_message_bytes, LARGEST)),
        ("grpc.max_send_message_length", -1),
        # Both bounds are equal: between them gRPC would refuse requests at random.
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.enable_channelz", int(settings.channelz)),  # its counters cost time for each message
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_MILLISECONDS),
        *_bounds(settings),
    ]


def _bounds(settings: Config) -> list[tuple[str, int]]:
    """Returns the options that bound what a client may take; each is tested by attacks."""
    keepalive_ms = round(1e3 * settings.keepalive_seconds)
    return [
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        # Above this bound gRPC would cancel calls at random, others' too. Another bound holds before.
        ("grpc.server.max_pending_requests", LARGEST),
        ("grpc.server.max_pending_requests_hard_limit", LARGEST),
        ("grpc.max_concurrent_streams", settings.max_connection_streams),
        ("grpc.server_handshake_timeout_ms", round(1e3 * _HANDSHAKE_SECONDS)),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms // 2),
        ("grpc.http2.ping_timeout_ms", keepalive_ms // 2),
        ("grpc.http2.max_pings_without_data", 0),  # 0: any number
        ("grpc.per_message_decompression", 0),  # gRPC knows no bound on what a message inflates to
    ]
