"""Server reflection: tools such as grpcurl get the API from the server and need no proto file.

grpcio-reflection has grpc.reflection.v1alpha alone. The messages of v1 have the same fields under the same
numbers, so both versions get the same bytes. Does not know what the services do.
"""

from typing import Any

from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha.reflection import ReflectionServicer

from service.errors import StreamcellError
from service.rpc.methods import Streaming, Unary, parse
from service.rpc.stream import Stream

SERVICE = pb.DESCRIPTOR.services_by_name["ServerReflection"].full_name
_SERVICE_V1 = SERVICE.replace("v1alpha", "v1")


def methods(services: list[str]) -> list[Unary[Any] | Streaming]:
    """Returns the service's one method in both versions; it lists `services` and itself (v1alpha)."""
    servicer = ReflectionServicer([*services, SERVICE])
    return [
        Streaming(f"/{each}/ServerReflectionInfo", lambda stream, call: _Conversation(servicer, stream))
        for each in (SERVICE, _SERVICE_V1)
    ]


class _Conversation:
    """One client's stream: each request is answered at once."""

    def __init__(self, servicer: ReflectionServicer, stream: Stream) -> None:
        self._servicer = servicer
        self._stream = stream

    def receive(self, raw: bytes) -> None:
        request = parse(pb.ServerReflectionRequest, raw)
        for response in self._servicer.ServerReflectionInfo(iter([request]), None):  # type: ignore[attr-defined, func-returns-value, arg-type]  # its stubs know only the asyncio servicer
            self._stream.send(response.SerializeToString())

    def stop(self, error: StreamcellError | None) -> None:
        self._stream.end(error)

    def cancel(self) -> None:
        """Does nothing: every request is already answered."""
