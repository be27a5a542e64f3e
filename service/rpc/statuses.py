"""The status with which a call ends: a canonical code, a message, and gRPC's trailers.

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
    """The end of a call: a canonical code, a message, and further facts for the trailers.

    `details` is a google.rpc.Status, or empty. gRPC clients that repeat calls by themselves obey
    `retry_pushback_ms`: they wait so many milliseconds, or do not repeat the call here if it is negative.
    """

    code: int
    message: str
    details: bytes
    retry_pushback_ms: int | None = None

    @property
    def trailers(self) -> list[tuple[str, str | bytes]]:
        """GRPC's trailers beside code and message; a name that ends in -bin has bytes as its value."""
        found: list[tuple[str, str | bytes]] = []
        if self.details:
            found.append(("grpc-status-details-bin", self.details))
        if self.retry_pushback_ms is not None:
            found.append(("grpc-retry-pushback-ms", str(self.retry_pushback_ms)))
        return found


class RefusedError(Exception):
    """Ends a call with an error; the front sends `status` to the client."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


def status_of(error: StreamcellError) -> Status:
    """Returns the status of an error; details hold google.rpc's ErrorInfo, and RetryInfo for a delay."""
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
