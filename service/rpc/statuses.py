"""How calls end: errors as canonical codes, messages and gRPC's trailers.

Does not know calls, nor how a front writes a trailer.
"""

import dataclasses
import math

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as StatusMessage

from service.errors import DOMAIN, Reason, StreamcellError


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """How a call ends: a canonical code, a message, and what the trailers say beside them.

    `details` is a google.rpc.Status, or empty. `retry_pushback_ms` is what a gRPC client that repeats calls
    by itself heeds: not before so long, or, negative, not here at all.
    """

    code: int
    message: str
    details: bytes
    retry_pushback_ms: int | None = None

    @property
    def trailers(self) -> list[tuple[str, str | bytes]]:
        """What gRPC's trailers say beside code and message; bytes under names that end in -bin."""
        found: list[tuple[str, str | bytes]] = []
        if self.details:
            found.append(("grpc-status-details-bin", self.details))
        if self.retry_pushback_ms is not None:
            found.append(("grpc-retry-pushback-ms", str(self.retry_pushback_ms)))
        return found


class RefusedError(Exception):
    """A call ended with an error; fronts send its `status`."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


def status_of(error: StreamcellError) -> Status:
    """Returns an error as a status whose details hold google.rpc's ErrorInfo and, for a retry, RetryInfo."""
    message = StatusMessage(code=error.code, message=error.message)
    _pack(message, ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    if error.retry_delay_seconds:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_delay_seconds * 1e9))
        _pack(message, RetryInfo(retry_delay=delay))
    return Status(int(error.code), error.message, message.SerializeToString(), _pushback_ms(error))


def _pushback_ms(error: StreamcellError) -> int | None:
    if error.reason is Reason.DRAINING:
        return -1
    return math.ceil(error.retry_delay_seconds * 1e3) if error.retry_delay_seconds else None


def _pack(message: StatusMessage, detail: Message) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    message.details.append(packed)
