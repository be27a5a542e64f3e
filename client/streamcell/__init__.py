"""Streams time steps through a trained recurrent model whose state stays on the server.

    async with Client("localhost:50051") as client:
        async with client.session(model="nyc-taxi") as session:
            async for prediction in session.stream(rows):
                print(prediction.step_index, prediction.y)

`streamcell.errors` describes what can go wrong.
"""

from streamcell.client import Client
from streamcell.convert import Row, Rows, Time, TimedRow
from streamcell.errors import (
    AccessDenied,
    AlreadyExists,
    ConnectionLost,
    DeadlineExceeded,
    Draining,
    DurableUnsupported,
    FailedPrecondition,
    Fenced,
    InvalidArgument,
    MessageTooLarge,
    Misuse,
    ModelChanged,
    ModelNotFound,
    ModelNotHere,
    NotFound,
    NotImplementedByServer,
    NotOpen,
    Overloaded,
    QuotaExceeded,
    ResourceExhausted,
    ServerInternal,
    SessionEvicted,
    SessionExists,
    SessionExpired,
    SessionGone,
    SessionNotFound,
    SessionsFull,
    SnapshotRejected,
    StepConflict,
    StepForgotten,
    StepGap,
    StoreUnavailable,
    StreamcellError,
    StreamInterrupted,
    TooManySteps,
    Unauthenticated,
    Unavailable,
)
from streamcell.retry import Sources
from streamcell.session import Session
from streamcell.stream import StepStream
from streamcell.token import Token, TokenFile
from streamcell.values import (
    Limits,
    Model,
    OpenMode,
    Prediction,
    RetryPolicy,
    SessionInfo,
    Timeout,
    Tls,
    Variable,
)

__all__ = [
    "AccessDenied", "AlreadyExists", "Client", "ConnectionLost", "DeadlineExceeded", "Draining",
    "DurableUnsupported", "FailedPrecondition", "Fenced", "InvalidArgument", "Limits",
    "MessageTooLarge", "Misuse", "Model", "ModelChanged", "ModelNotFound", "ModelNotHere", "NotFound",
    "NotImplementedByServer", "NotOpen", "OpenMode", "Overloaded", "Prediction", "QuotaExceeded",
    "ResourceExhausted", "RetryPolicy", "Row", "Rows", "ServerInternal", "Session", "SessionEvicted",
    "SessionExists", "SessionExpired", "SessionGone", "SessionInfo", "SessionNotFound", "SessionsFull",
    "SnapshotRejected", "Sources", "StepConflict", "StepForgotten", "StepGap", "StepStream",
    "StoreUnavailable", "StreamInterrupted", "StreamcellError", "Time", "TimedRow", "Timeout", "Tls",
    "Token", "TokenFile", "TooManySteps", "Unauthenticated", "Unavailable", "Variable",
]  # fmt: skip
