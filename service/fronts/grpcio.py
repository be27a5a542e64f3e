"""The portable front: grpcio's asyncio server carries the bytes.

Knows gRPC's server, not what the methods do; the only module that does.
"""

import asyncio
import contextlib
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import grpc
from grpc import aio

from service.config import LARGEST, Address, Config
from service.errors import ConfigError
from service.rpc.methods import Call, Streaming, Unary
from service.rpc.router import Router
from service.rpc.statuses import RefusedError, Status
from service.rpc.stream import Stream

_CODES = {code.value[0]: code for code in grpc.StatusCode}
# Messages somewhat over the bound still arrive, to be refused with their reason; gRPC itself stops the rest.
_HARD_LIMIT_FACTOR = 4
# Calls are in gRPC's core some turns of the loop before they are seen here. So quiet is counted in naps: a
# loop that was held up has seen no calls either, which is no quiet.
_NAP_SECONDS = 0.01
_QUIET_NAPS = 5
_LINGER_SECONDS = 1.0  # at most, where clients come again and again
_MANY_BYTES = 4096  # more than the buffer of a pair of sockets holds, when each is written alone
_Caller = Callable[["aio.ServicerContext[bytes, bytes]"], Call]


class GrpcioFront:
    """One listening server over a router's methods."""

    def __init__(self, router: Router, settings: Config) -> None:
        self._router = router
        with _wake_ups_read_together():
            self._server = aio.server(options=_options(settings))
        self._calls = _Calls()
        self._server.add_generic_rpc_handlers((_Handlers(router, self._calls, _caller(settings)),))
        self._settings = settings

    async def start(self) -> Address:
        """Begins to serve and returns where, with the port that 0 stood for.

        Raises:
            ConfigError: the address is taken or not this machine's, or a TLS file cannot be used.
        """
        wanted = self._settings.listen
        try:
            if self._settings.tls_cert:
                port = self._server.add_secure_port(str(wanted), _credentials(self._settings))
            else:
                port = self._server.add_insecure_port(str(wanted))
        except RuntimeError:
            raise ConfigError(
                f"--listen: cannot listen on {wanted}: is it taken, or another machine's?"
            ) from None
        await self._server.start()
        return Address(wanted.host, port)

    async def stop(self, grace_seconds: float) -> None:
        """Gives calls under way `grace_seconds`, then cancels them; the router refuses new ones.

        Once gRPC's server is told to stop, it cancels without a word whatever reaches it and what it has
        not handed over yet. So it is told last: when calls have ended, those that came meanwhile were
        refused and no more come. Of clients that call on without a pause, what is on its way then is
        cancelled still; no method has seen it.
        """
        now = asyncio.get_running_loop().time
        deadline = now() + grace_seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._calls.all_ended()
            async with asyncio.timeout(min(_LINGER_SECONDS, (deadline - now()) / 2)):
                await self._calls.quiet()
        await self._server.stop(max(0.0, deadline - now()))


class _WakeUps(socket.socket):
    """Where grpcio's poller wakes the loop by a byte an event.

    grpcio handles all events in a turn of the loop, but reads one byte. Where turns are long the bytes pile
    up until the poller, which can write no more, is stuck, and with it every call, until three quarters of
    them are read: 200 turns, half a second beside clients that prime. So all are read by the first turn.
    """

    __slots__ = ()

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Takes all that is there, and returns `size` bytes of it."""
        return super().recv(_MANY_BYTES, flags)[:size]


@contextlib.contextmanager
def _wake_ups_read_together() -> Iterator[None]:
    """Has grpcio, which within the block makes a pair of sockets for its wake-ups, make it so."""
    make = socket.socketpair

    def pair() -> tuple[socket.socket, socket.socket]:
        reader, writer = make()
        return _WakeUps(fileno=reader.detach()), writer

    socket.socketpair = pair  # type: ignore[assignment]  # grpcio's only call of it has no arguments
    try:
        yield
    finally:
        socket.socketpair = make


class _Calls:
    """The calls that a method has taken and not answered yet."""

    def __init__(self) -> None:
        self._num_under_way = 0
        self._num_over = 0
        self._ended = asyncio.Event()

    def __enter__(self) -> None:
        self._num_under_way += 1

    def __exit__(self, *_: object) -> None:
        self._num_under_way -= 1
        self._num_over += 1
        if not self._num_under_way:
            self._ended.set()

    async def all_ended(self) -> None:
        """Waits until none is under way."""
        while self._num_under_way:
            self._ended.clear()
            await self._ended.wait()

    async def quiet(self) -> None:
        """Waits until for a while none has come and been refused."""
        num_naps = 0
        while num_naps < _QUIET_NAPS:
            num_over = self._num_over
            await asyncio.sleep(_NAP_SECONDS)
            num_naps = num_naps + 1 if num_over == self._num_over else 0


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs alone
    """Finds the handler of a path; a path without one is UNIMPLEMENTED."""

    def __init__(self, router: Router, calls: _Calls, caller: "_Caller") -> None:
        self._handlers = {
            path: _handler(router, method, calls, caller) for path, method in router.methods.items()
        }

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        return self._handlers.get(handler_call_details.method)


def _handler(
    router: Router, method: "Unary[Any] | Streaming", calls: _Calls, caller: "_Caller"
) -> "grpc.RpcMethodHandler[Any, Any]":
    if isinstance(method, Unary):
        return grpc.unary_unary_rpc_method_handler(_answer_unary(router, method, calls, caller))
    return grpc.stream_stream_rpc_method_handler(_carry_stream(router, method, calls, caller))


def _answer_unary(router: Router, method: "Unary[Any]", calls: _Calls, caller: "_Caller") -> Any:
    async def answer(raw: bytes, context: "aio.ServicerContext[bytes, bytes]") -> bytes:
        try:
            with calls:
                return await router.answer(method, raw, caller(context))
        except RefusedError as refused:
            await _abort(context, refused.status)
            raise AssertionError from None  # abort has raised

    return answer


def _carry_stream(router: Router, method: Streaming, calls: _Calls, caller: "_Caller") -> Any:
    async def carry(_: Any, context: "aio.ServicerContext[bytes, bytes]") -> None:
        stream = router.open(method, caller(context))
        waits = _Waits(stream)
        reader = asyncio.create_task(_read(stream, waits, context))
        try:
            with calls:
                await _write(stream, waits, context)
            if stream.status is not None:
                await _abort(context, stream.status)
        finally:
            reader.cancel()
            router.close(stream)

    return carry


async def _write(stream: Stream, waits: "_Waits", context: "aio.ServicerContext[bytes, bytes]") -> None:
    while not stream.is_over:
        while (message := stream.take()) is not None:
            waits.wake_reader()
            await context.write(message)
        if not stream.is_over:
            await waits.for_message()


async def _read(stream: Stream, waits: "_Waits", context: "aio.ServicerContext[bytes, bytes]") -> None:
    while isinstance(raw := cast(object, await context.read()), bytes):  # else it is the end
        stream.receive(raw)
        while stream.is_full:
            await waits.for_room()
    stream.half_close()


class _Waits:
    """What the two tasks of a stream wait for: its writer a message or the end, its reader room."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._message: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        stream.on_change = self._wake

    async def for_message(self) -> None:
        self._message = asyncio.get_running_loop().create_future()
        await self._message
        self._message = None

    async def for_room(self) -> None:
        self._room = asyncio.get_running_loop().create_future()
        await self._room
        self._room = None

    def wake_reader(self) -> None:
        if self._room is not None and not self._room.done() and not self._stream.is_full:
            self._room.set_result(None)

    def _wake(self) -> None:
        if self._message is not None and not self._message.done():
            self._message.set_result(None)
        self.wake_reader()


async def _abort(context: "aio.ServicerContext[bytes, bytes]", status: Status) -> None:
    await context.abort(_CODES[status.code], status.message, tuple(status.trailers))


def _caller(settings: Config) -> "_Caller":
    """Returns what tells the caller of a call: asked of gRPC only where callers have certificates."""
    nobody = Call()
    return _call if settings.tls_client_ca else lambda _: nobody


def _call(context: "aio.ServicerContext[bytes, bytes]") -> Call:
    names = list(context.auth_context().get("x509_common_name", []))
    return Call(principal=names[0].decode(errors="replace").replace("\0", "") if names else "")


def _credentials(settings: Config) -> grpc.ServerCredentials:
    paths = (settings.tls_key, settings.tls_cert, settings.tls_client_ca)
    try:
        key, cert, client_ca = (pathlib.Path(path).read_bytes() if path else None for path in paths)
    except OSError as error:
        raise ConfigError(f"--tls-*: {error.filename}: {error.strerror}") from None
    return grpc.ssl_server_credentials(
        [(key or b"", cert or b"")], client_ca, require_client_auth=client_ca is not None
    )


def _options(settings: Config) -> list[tuple[str, int]]:
    return [
        # Workers share a port by it; where none are meant, a second server would share it silently.
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.max_receive_message_length", min(_HARD_LIMIT_FACTOR * settings.max_message_bytes, LARGEST)),
        ("grpc.max_send_message_length", -1),
        # Both bounds alike: between them gRPC would refuse requests at random.
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.enable_channelz", int(settings.channelz)),  # what it counts costs something with each message
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ]
