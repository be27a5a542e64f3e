"""The errors a caller can meet, read from a call's status or from a message of a stream.

    StreamcellError
     ·  InvalidArgument (also a ValueError)   .field: what is wrong
         ·  TooManySteps                      more steps in one message than the server allows
     ·  NotFound
         ·  ModelNotFound
         ·  SessionGone                       the server does not have the session: its state is lost
             ·  SessionNotFound
             ·  SessionExpired
             ·  SessionEvicted
     ·  AlreadyExists
         ·  SessionExists
         ·  StepConflict                      another input was applied under this index
     ·  StepForgotten                         applied, but the server no longer remembers its reply
     ·  FailedPrecondition
         ·  StepGap                           .expected_step_index: the step that the server takes next
         ·  ModelChanged
         ·  SnapshotRejected
         ·  DurableUnsupported                the server cannot promise what `durable` asks
     ·  Fenced                                another server took the session over; the library takes it back
     ·  ResourceExhausted
         ·  Overloaded                        .retry_delay_seconds
         ·  QuotaExceeded                     .retry_delay_seconds; the client uses as much as it may
         ·  SessionsFull
         ·  MessageTooLarge
     ·  Unavailable                           retried by the library before a caller sees it
         ·  Draining
         ·  StoreUnavailable
         ·  ModelNotHere
         ·  ConnectionLost                    no connection, or it broke
     ·  DeadlineExceeded                      whether a step was applied is not known
     ·  AccessDenied
         ·  Unauthenticated                   no valid token, or a certificate that names no client
     ·  NotImplementedByServer
     ·  ServerInternal                        .error_id: what to look for in the server's log
     ·  Misuse (also a RuntimeError)
         ·  NotOpen                           used outside its `async with`
         ·  StreamInterrupted                 another call on the session ended the stream

Every error has `.message`, `.code` (a grpc.StatusCode), `.reason` (the server's word, "" if it gave none)
and `.metadata`. A reason that this version does not know becomes the class of its code. The module does not
know which errors are worth a retry, nor when.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from streamcell.v1 import streamcell_pb2 as pb

DOMAIN = "streamcell"


class StreamcellError(Exception):
    """The base of every error of this library; itself the error for codes that have no class."""

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_delay_seconds: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_delay_seconds = retry_delay_seconds


class InvalidArgument(StreamcellError, ValueError):  # noqa: N818 - the names are the reasons of the API
    """A value is wrong, found by the server or before anything was sent."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT

    @property
    def field(self) -> str:
        """The field that is wrong; "" if the server named none."""
        return self.metadata.get("field", "")


class TooManySteps(InvalidArgument):
    """A message held more steps than the server allows."""


class NotFound(StreamcellError):  # noqa: N818
    """The server does not have what the call names."""

    default_code = grpc.StatusCode.NOT_FOUND


class ModelNotFound(NotFound):
    """The server has no such model."""


class SessionGone(NotFound):
    """The server does not have the session; to go on, open a new one and prime it."""


class SessionNotFound(SessionGone):
    """No session has this id, or the session belongs to another principal."""


class SessionExpired(SessionGone):
    """The session was not used for longer than its time to live."""


class SessionEvicted(SessionGone):
    """The server needed the session's room."""


class AlreadyExists(StreamcellError):  # noqa: N818
    """The call creates something that exists already."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class SessionExists(AlreadyExists):
    """The session's id is in use."""


class StepConflict(AlreadyExists):
    """Another input was applied under this step's index."""


class StepForgotten(StreamcellError):  # noqa: N818
    """The step was applied, but so long ago that the server no longer remembers its reply."""

    default_code = grpc.StatusCode.OUT_OF_RANGE


class FailedPrecondition(StreamcellError):  # noqa: N818
    """The session is not in the state that the request needs."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class StepGap(FailedPrecondition):
    """The server lacks steps before this one: it takes `expected_step_index` next."""

    @property
    def expected_step_index(self) -> int | None:
        """The index that the server takes next; None if it did not say."""
        text = self.metadata.get("expected_step_index", "")
        return int(text) if text.isdecimal() else None


class ModelChanged(FailedPrecondition):
    """The session runs on another model."""


class SnapshotRejected(FailedPrecondition):
    """The snapshot is not one of Streamcell's, damaged, of another model, or not signed as it must be."""


class DurableUnsupported(FailedPrecondition):
    """The server's store cannot tell when a step is on its disk, and the server refuses durable sessions."""


class Fenced(StreamcellError):  # noqa: N818
    """Another server took the session over."""

    default_code = grpc.StatusCode.ABORTED


class ResourceExhausted(StreamcellError):  # noqa: N818
    """A limit of the server or of a message is reached."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Overloaded(ResourceExhausted):
    """The server has no room for steps, calls or messages; it asks to come again in `retry_delay_seconds`."""


class QuotaExceeded(ResourceExhausted):
    """The client's principal uses as much of the server as it may."""


class SessionsFull(ResourceExhausted):
    """The server has no room for another session."""


class MessageTooLarge(ResourceExhausted):
    """A message is larger than one side allows."""


class Unavailable(StreamcellError):  # noqa: N818
    """The server cannot be reached or cannot answer now."""

    default_code = grpc.StatusCode.UNAVAILABLE


class Draining(Unavailable):
    """The server is stopping."""


class StoreUnavailable(Unavailable):
    """A durable session cannot be written now."""


class ModelNotHere(Unavailable):
    """The session runs on a newer version of its model than this server has; another server may have it."""


class ConnectionLost(Unavailable):
    """There is no connection to the server, or it broke."""


class DeadlineExceeded(StreamcellError):  # noqa: N818
    """No answer came in time; the next call on the session finds out where it stands."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class AccessDenied(StreamcellError):  # noqa: N818
    """The server does not know this client, or does not let it do this."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class Unauthenticated(AccessDenied):
    """The call shows no token that is valid on the server, or a certificate that names no client."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class NotImplementedByServer(StreamcellError):  # noqa: N818
    """The server does not offer this."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class ServerInternal(StreamcellError):  # noqa: N818
    """The server failed; its log has the reason under `error_id`."""

    default_code = grpc.StatusCode.INTERNAL

    @property
    def error_id(self) -> str:
        """The id to look for in the server's log; "" if the server gave none."""
        return self.metadata.get("error_id", "")


class Misuse(StreamcellError, RuntimeError):  # noqa: N818
    """The library was used in an order that cannot work."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class NotOpen(Misuse):
    """A client or session was used outside its `async with`."""


class StreamInterrupted(Misuse):
    """Another call on the session ended the stream."""


_BY_REASON: Mapping[str, type[StreamcellError]] = {
    "UNAUTHENTICATED": Unauthenticated,
    "INVALID_ARGUMENT": InvalidArgument,
    "TOO_MANY_STEPS": TooManySteps,
    "MODEL_NOT_FOUND": ModelNotFound,
    "MODEL_NOT_HERE": ModelNotHere,
    "SESSION_NOT_FOUND": SessionNotFound,
    "SESSION_EXPIRED": SessionExpired,
    "SESSION_EVICTED": SessionEvicted,
    "SESSION_EXISTS": SessionExists,
    "STEP_CONFLICT": StepConflict,
    "STEP_FORGOTTEN": StepForgotten,
    "STEP_GAP": StepGap,
    "MODEL_CHANGED": ModelChanged,
    "SNAPSHOT_REJECTED": SnapshotRejected,
    "DURABLE_UNSUPPORTED": DurableUnsupported,
    "SESSION_FENCED": Fenced,
    "OVERLOADED": Overloaded,
    "QUOTA_EXCEEDED": QuotaExceeded,
    "SESSIONS_FULL": SessionsFull,
    "MESSAGE_TOO_LARGE": MessageTooLarge,
    "DRAINING": Draining,
    "STORE_UNAVAILABLE": StoreUnavailable,
    "NOT_IMPLEMENTED": NotImplementedByServer,
    "INTERNAL": ServerInternal,
}

_BY_CODE: Mapping[grpc.StatusCode, type[StreamcellError]] = {
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    **{
        kind.default_code: kind
        for kind in (
            InvalidArgument, NotFound, AlreadyExists, StepForgotten, FailedPrecondition, Fenced,
            ResourceExhausted, Unavailable, DeadlineExceeded, AccessDenied, NotImplementedByServer,
            ServerInternal,
        )
    },
}  # fmt: skip

_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def from_rpc_error(error: grpc.aio.AioRpcError) -> StreamcellError:
    """Returns the error that a call's final status stands for."""
    message = error.details() or error.code().name
    info, retry_delay_seconds = _details(error)
    if info is None:
        return _plain(error.code(), message)
    return _class_of(info.reason, error.code())(
        message,
        code=error.code(),
        reason=info.reason,
        metadata=info.metadata,
        retry_delay_seconds=retry_delay_seconds,
    )


def from_stream_error(error: pb.StreamError) -> StreamcellError:
    """Returns the error that a message of a stream stands for."""
    code = _CODES.get(error.code, grpc.StatusCode.UNKNOWN)
    return _class_of(error.reason, code)(
        error.message,
        code=code,
        reason=error.reason,
        metadata=error.metadata,
        retry_delay_seconds=error.retry_delay_seconds,
    )


def invalid(field: str, message: str) -> InvalidArgument:
    """Returns the error for a wrong argument, found before anything was sent."""
    return InvalidArgument(f"{field}: {message}", reason="INVALID_ARGUMENT", metadata={"field": field})


def _class_of(reason: str, code: grpc.StatusCode) -> type[StreamcellError]:
    return _BY_REASON.get(reason) or _BY_CODE.get(code, StreamcellError)


def _plain(code: grpc.StatusCode, message: str) -> StreamcellError:
    """Returns the error for a status that came from gRPC itself, a proxy, or a server of another kind."""
    # A stream that the other side cut ends as UNAVAILABLE, CANCELLED or a reset: that depends on who cut it.
    # grpc.aio says "Internal error from Core" when the client writes to a call that has just ended.
    broke = any(sign in message for sign in ("RST_STREAM", "Stream removed", "Internal error from Core"))
    if broke or code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return ConnectionLost(message, code=code)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in message:
        return MessageTooLarge(message, code=code)
    return _BY_CODE.get(code, StreamcellError)(message, code=code)


def _details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo | None, float]:
    """Returns the ErrorInfo and the retry delay of a status; ignores details that are broken or foreign."""
    try:
        status = rpc_status.from_call(cast("Any", error))
    except (ValueError, DecodeError):
        return None, 0.0
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    found = False
    for detail in status.details if status else ():
        found = found or (detail.Unpack(info) and info.domain == DOMAIN)
        detail.Unpack(retry)
    return (info if found else None), retry.retry_delay.ToTimedelta().total_seconds()
