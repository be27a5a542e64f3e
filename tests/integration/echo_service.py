"""A service of methods made to try a front with, and the same methods served on each front."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.wrappers_pb2 import StringValue

from service.config import Config
from service.errors import Reason, StreamcellError
from service.fronts.envoy.application import EnvoyFront
from service.fronts.grpcio import GrpcioFront
from service.processes.supervisor import Supervisor
from service.rpc.methods import Call, Streaming, Unary
from service.rpc.request_bytes import RequestBytes
from service.rpc.router import Router
from service.rpc.stream import Stream
from service.server import Front
from service.servicers.standard.health import HealthServicer

SECRET = "this stands in the log alone"  # noqa: S105

_UNARY = ("Echo", "Refuse", "Wait", "Events")


def _describe() -> None:
    """Describes the methods to protobuf, as a proto file would: service `t`, whose messages are texts."""
    text = "." + StringValue.DESCRIPTOR.full_name
    file = FileDescriptorProto(name="echo_service.proto", dependency=[StringValue.DESCRIPTOR.file.name])
    service = file.service.add(name="t")
    for name in (*_UNARY, "Talk"):
        streams = name not in _UNARY
        service.method.add(
            name=name, input_type=text, output_type=text, client_streaming=streams, server_streaming=streams
        )
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


_describe()


class EchoService:
    """The methods, and a record of what became of their calls.

    Echo answers with the request. Refuse fails with the reason that the request names, or with a fault. Wait
    never answers. Events returns the record and empties it. Talk is a stream that obeys its messages.
    """

    def __init__(self) -> None:
        self.events: list[str] = []

    def methods(self) -> list[Unary[Any] | Streaming]:
        """Returns the methods."""
        unary = {"Echo": self._echo, "Refuse": self._refuse, "Wait": self._wait, "Events": self._take_events}
        return [
            *(Unary(f"/t/{name}", StringValue, behaviour) for name, behaviour in unary.items()),
            Streaming("/t/Talk", self._talk),
        ]

    async def _echo(self, request: StringValue, call: Call) -> StringValue:
        return request

    async def _refuse(self, request: StringValue, call: Call) -> StringValue:
        raise refusal(request.value)

    async def _wait(self, request: StringValue, call: Call) -> StringValue:
        self.events.append(f"waits {request.value}")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.events.append(f"left {request.value}")
        return request

    async def _take_events(self, request: StringValue, call: Call) -> StringValue:
        events, self.events = self.events, []
        return StringValue(value=",".join(events))

    def _talk(self, stream: Stream, call: Call) -> "Talk":
        return Talk(self, stream)


def refusal(name: str) -> Exception:
    """Returns the exception of a method that must fail: with a reason, or with a fault."""
    if name == "fault":
        return RuntimeError(SECRET)
    return StreamcellError(
        Reason(name), f"as asked: {name} ü %", metadata={"asked": name}, retry_delay_seconds=0.5
    )


class Talk:
    """One client's Talk: `say X`, `flood N`, `end`, `keep NAME`, `quiet`, or the name of a failure.

    After `keep NAME` the stream stays open when the client half-closes, and NAME stands in its events.
    """

    def __init__(self, service: EchoService, stream: Stream) -> None:
        self._service = service
        self._stream = stream
        self._recorded_as = ""

    def receive(self, raw: bytes) -> None:
        """Obeys a message."""
        command, _, rest = StringValue.FromString(raw).value.partition(" ")
        if command == "say":
            self._stream.send(raw)
        elif command == "flood":
            for number in range(int(rest)):
                self._stream.send(StringValue(value=f"{number:1000}").SerializeToString())
        elif command == "end":
            self._stream.end()
        elif command == "keep":
            self._recorded_as = rest
        elif command != "quiet":
            raise refusal(command)

    def stop(self, error: StreamcellError | None) -> None:
        """Ends the stream, unless a message ordered to keep it open."""
        self._record("half-closed" if error is None else "drained")
        if error is not None or not self._recorded_as:
            self._stream.end(error)

    def cancel(self) -> None:
        """Records the cancellation."""
        self._record("cancelled")

    def _record(self, event: str) -> None:
        if self._recorded_as:
            self._service.events.append(f"{event} {self._recorded_as}")


def router(settings: Config) -> Router:
    """Returns a router over the echo service's methods and a server's health."""
    return Router(
        [*EchoService().methods(), *HealthServicer([]).methods()],
        max_message_bytes=settings.max_message_bytes,
        max_stream_messages=settings.max_stream_messages,
        count_error=lambda path, error: None,
        count_streams=lambda count: None,
        max_active_calls=settings.max_active_calls,
        request_bytes=RequestBytes(settings.max_arriving_bytes),
    )


class GrpcioEchoServer:
    """The echo service on the grpcio front, in this process."""

    async def start(self, settings: Config) -> str:
        """Starts the server and returns its address."""
        self._server = _EchoServer(settings, GrpcioFront)
        return str(await self._server.front.start())

    async def drain(self) -> bool:
        """Finishes active calls and ends."""
        return await self._server.drain()

    async def stop(self) -> None:
        """Ends at once."""
        await self._server.abandon()


class EnvoyEchoServer:
    """The echo service on the envoy front, in a process of its own."""

    async def start(self, settings: Config) -> str:
        """Starts the server and returns its address."""
        self._supervisor = Supervisor(settings, "tests.integration.echo_service:application")
        await self._supervisor.start()
        return str(self._supervisor.listen)

    async def drain(self) -> bool:
        """Finishes active calls and ends."""
        return await self._supervisor.drain()

    async def stop(self) -> None:
        """Ends the process."""
        await self._supervisor.stop()


ECHO_SERVERS: dict[str, Callable[[], Any]] = {"grpcio": GrpcioEchoServer, "envoy": EnvoyEchoServer}


class _EchoServer:
    """The parts of a server that `service.worker` needs."""

    def __init__(self, settings: Config, front: Callable[[Router, Config], Front]) -> None:
        self._router = router(settings)
        self._grace_seconds = settings.drain_timeout_seconds
        self.front = front(self._router, settings)
        self.listen = settings.listen
        self._listening = asyncio.Event()

    async def start(self) -> None:
        await self.front.start()
        self._listening.set()

    async def until_listening(self) -> None:
        await self._listening.wait()

    def page(self) -> str:
        return ""

    async def drain(self) -> bool:
        self._router.drain()
        return await self.front.stop(self._grace_seconds)

    async def abandon(self) -> None:
        await self.front.stop(0)


def __getattr__(name: str) -> Any:
    """Makes the ASGI application on demand, as it can only be made inside Envoy."""
    if name != "application" or "STREAMCELL_CONTROL_FD" not in os.environ:
        raise AttributeError(name)
    from service.worker import Application

    return Application(lambda settings: _EchoServer(settings, EnvoyFront))
