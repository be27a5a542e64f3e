"""Server reflection, so that grpcurl and its like need no proto file.

grpcio-reflection has grpc.reflection.v1alpha alone; v1 has the same messages by the same numbers, and so the
same answers.
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
    """Returns the service's one method in both versions; it tells of `services` and itself."""
    servicer = ReflectionServicer([*services, SERVICE])
    return [
        Streaming(f"/{each}/ServerReflectionInfo", lambda stream, call: _Conversation(servicer, stream))
        for each in (SERVICE, _SERVICE_V1)
    ]


class _Conversation:
    """One client's questions: each has one answer, at once."""

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
        """Has nothing under way."""
