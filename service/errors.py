"""The errors that callers see: a canonical code, a reason for machines, a sentence for people.

    StreamcellError
     ·  reason               one of Reason; fixes the code
     ·  message              says what is wrong and what to do
     ·  metadata             facts for machines: "field", "expected_step_index", "error_id" ...
     ·  retry_delay_seconds  for OVERLOADED, STORE_UNAVAILABLE: when to come again

Every other exception is a fault of the server: callers get INTERNAL and an id, the log has the rest.
This module does not know gRPC; codes are the numbers of google.rpc.Code.
"""

import enum
import uuid
from collections.abc import Mapping

DOMAIN = "streamcell"


class Code(enum.IntEnum):
    """The canonical codes in use, as numbered by google.rpc.Code."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class Reason(enum.StrEnum):
    """The reasons of the API's error table (protos/streamcell/v1/streamcell.proto)."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    TOO_MANY_STEPS = "TOO_MANY_STEPS"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    SESSION_NOT_FOUND = "SESSION_NOT_FOUND"
    SESSION_EXPIRED = "SESSION_EXPIRED"
    SESSION_EVICTED = "SESSION_EVICTED"
    SESSION_EXISTS = "SESSION_EXISTS"
    STEP_CONFLICT = "STEP_CONFLICT"
    STEP_FORGOTTEN = "STEP_FORGOTTEN"
    STEP_GAP = "STEP_GAP"
    MODEL_CHANGED = "MODEL_CHANGED"
    SNAPSHOT_REJECTED = "SNAPSHOT_REJECTED"
    SESSION_FENCED = "SESSION_FENCED"
    OVERLOADED = "OVERLOADED"
    SESSIONS_FULL = "SESSIONS_FULL"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    DRAINING = "DRAINING"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    NOT_IMPLEMENTED = "NOT_IMPLEMENTED"
    INTERNAL = "INTERNAL"
    SERVICE_NOT_FOUND = "SERVICE_NOT_FOUND"  # of the health service, which has no table of its own
    CHANNELZ_NOT_FOUND = "CHANNELZ_NOT_FOUND"  # of channelz, which has none either
    TIMED_OUT = "TIMED_OUT"  # of the Open Inference Protocol, whose requests may bound their wait


CODES: Mapping[Reason, Code] = {
    Reason.INVALID_ARGUMENT: Code.INVALID_ARGUMENT,
    Reason.TOO_MANY_STEPS: Code.INVALID_ARGUMENT,
    Reason.MODEL_NOT_FOUND: Code.NOT_FOUND,
    Reason.SESSION_NOT_FOUND: Code.NOT_FOUND,
    Reason.SESSION_EXPIRED: Code.NOT_FOUND,
    Reason.SESSION_EVICTED: Code.NOT_FOUND,
    Reason.SESSION_EXISTS: Code.ALREADY_EXISTS,
    Reason.STEP_CONFLICT: Code.ALREADY_EXISTS,
    Reason.STEP_FORGOTTEN: Code.OUT_OF_RANGE,
    Reason.STEP_GAP: Code.FAILED_PRECONDITION,
    Reason.MODEL_CHANGED: Code.FAILED_PRECONDITION,
    Reason.SNAPSHOT_REJECTED: Code.FAILED_PRECONDITION,
    Reason.SESSION_FENCED: Code.ABORTED,
    Reason.OVERLOADED: Code.RESOURCE_EXHAUSTED,
    Reason.SESSIONS_FULL: Code.RESOURCE_EXHAUSTED,
    Reason.MESSAGE_TOO_LARGE: Code.RESOURCE_EXHAUSTED,
    Reason.DRAINING: Code.UNAVAILABLE,
    Reason.STORE_UNAVAILABLE: Code.UNAVAILABLE,
    Reason.NOT_IMPLEMENTED: Code.UNIMPLEMENTED,
    Reason.INTERNAL: Code.INTERNAL,
    Reason.SERVICE_NOT_FOUND: Code.NOT_FOUND,
    Reason.CHANNELZ_NOT_FOUND: Code.NOT_FOUND,
    Reason.TIMED_OUT: Code.DEADLINE_EXCEEDED,
}


class StreamcellError(Exception):
    """An error for the caller, as the module's docstring describes it."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_delay_seconds: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_delay_seconds = retry_delay_seconds

    @property
    def code(self) -> Code:
        """The canonical code that belongs to the reason."""
        return CODES[self.reason]


class ConfigError(Exception):
    """A setting, or something it points to, is wrong; the message names it. The server does not start."""


def brief(text: str) -> str:
    """Returns a caller's text, quoted and cut to what fits in a message: statuses travel as headers."""
    return repr(text if len(text) <= 128 else text[:128] + "…")


def invalid_argument(field: str, message: str) -> StreamcellError:
    """Returns the error for a request whose `field` is at fault."""
    return StreamcellError(Reason.INVALID_ARGUMENT, f"{field}: {message}", metadata={"field": field})


def session_not_found(session_id: str) -> StreamcellError:
    """Returns the error for an id that names no session of the caller's."""
    return StreamcellError(
        Reason.SESSION_NOT_FOUND,
        f"no session {brief(session_id)}: open it with OpenSession, or begin it with a step of step_index 0",
        metadata={"session_id": session_id[:128]},
    )


def session_expired(session_id: str) -> StreamcellError:
    """Returns the error for a session that nobody used for too long."""
    return StreamcellError(
        Reason.SESSION_EXPIRED,
        f"session {brief(session_id)} expired because it was idle: open it again and feed it its history",
        metadata={"session_id": session_id[:128]},
    )


def session_fenced(session_id: str) -> StreamcellError:
    """Returns the error for a session that another server has taken over."""
    return StreamcellError(
        Reason.SESSION_FENCED,
        f"session {brief(session_id)} was taken over by another server: go on there, or take it back with"
        " OpenSession, which tells where it stands",
        metadata={"session_id": session_id[:128]},
    )


def session_held(session_id: str) -> StreamcellError:
    """Returns the error for another server's session, which a step without an index does not take over."""
    return StreamcellError(
        Reason.SESSION_FENCED,
        f"session {brief(session_id)} belongs to another server, or to one that ended: take it over with"
        " OpenSession, which tells where it stands, or give the step_index",
        metadata={"session_id": session_id[:128]},
    )


def store_unavailable(why: str) -> StreamcellError:
    """Returns the error for what needs the store while it cannot be used."""
    return StreamcellError(
        Reason.STORE_UNAVAILABLE, f"the store cannot be used now ({why}): come again", retry_delay_seconds=0.5
    )


def snapshot_rejected(why: str) -> StreamcellError:
    """Returns the error for a session's bytes that cannot be used."""
    return StreamcellError(Reason.SNAPSHOT_REJECTED, f"this snapshot cannot be used: {why}")


def record_rejected(session_id: str, why: str) -> StreamcellError:
    """Returns the error for a session whose record in the store cannot be used."""
    return StreamcellError(
        Reason.SNAPSHOT_REJECTED,
        f"session {brief(session_id)} cannot be taken from the store: {why}."
        " CloseSession forgets it; it can then be opened anew",
        metadata={"session_id": session_id[:128]},
    )


def session_exists(session_id: str) -> StreamcellError:
    """Returns the error for a new session whose id is in use."""
    return StreamcellError(
        Reason.SESSION_EXISTS,
        f"session {brief(session_id)} is open already: resume it, or choose another id",
        metadata={"session_id": session_id[:128]},
    )


def model_not_found(model: str, served: str) -> StreamcellError:
    """Returns the error for a model that is not served; `served` lists those that are."""
    return StreamcellError(
        Reason.MODEL_NOT_FOUND, f"no model {brief(model)}; served: {served}", metadata={"model": model[:128]}
    )


def model_changed(session_id: str, asked: str, runs_on: str) -> StreamcellError:
    """Returns the error for a session that runs on another model than the request says."""
    return StreamcellError(
        Reason.MODEL_CHANGED,
        f"session {brief(session_id)} runs on {runs_on}, not on {brief(asked)}: "
        "leave the model out, or use another session",
        metadata={"session_id": session_id[:128], "model": runs_on},
    )


def artifact_changed(model: str) -> StreamcellError:
    """Returns the error for a session's bytes of a model that is served from another artifact here."""
    return StreamcellError(
        Reason.MODEL_CHANGED,
        f"the session runs on another artifact than is served here as {brief(model)}: a new artifact takes a"
        " new version",
        metadata={"model": model[:128]},
    )


def step_gap(expected: int, got: int) -> StreamcellError:
    """Returns the error for a step that is beyond the session's next."""
    return StreamcellError(
        Reason.STEP_GAP,
        f"step_index {got} is ahead of the session: send step {expected} next",
        metadata={"expected_step_index": str(expected)},
    )


def session_ended(end: Reason | None) -> StreamcellError:
    """Returns the error for work whose session ended while it waited; `end`: why, None if it was closed."""
    if end is Reason.SESSION_FENCED:
        return StreamcellError(
            Reason.SESSION_FENCED, "another server took the session over before this ran: open it again"
        )
    return StreamcellError(
        Reason.SESSION_NOT_FOUND, "the session was closed or expired before this ran: open it again"
    )


def step_conflict(step_index: int) -> StreamcellError:
    """Returns the error for another input under an index that is applied already."""
    return StreamcellError(
        Reason.STEP_CONFLICT,
        f"step_index {step_index} was applied with another input: a retry must repeat x and time_ns",
        metadata={"step_index": str(step_index)},
    )


def step_forgotten(step_index: int, expected: int) -> StreamcellError:
    """Returns the error for a repeated step whose reply is no longer kept."""
    return StreamcellError(
        Reason.STEP_FORGOTTEN,
        f"step_index {step_index} was applied, but its reply is no longer kept: go on with step {expected}",
        metadata={"expected_step_index": str(expected)},
    )


def overloaded(queued_steps: int, retry_delay_seconds: float) -> StreamcellError:
    """Returns the error for a queue with no room for the request."""
    return StreamcellError(
        Reason.OVERLOADED,
        f"{queued_steps} steps are waiting, as many as may: come again in {retry_delay_seconds:g} s",
        retry_delay_seconds=retry_delay_seconds,
    )


def sessions_full(max_sessions: int) -> StreamcellError:
    """Returns the error for a session beyond the bound on their number."""
    return StreamcellError(
        Reason.SESSIONS_FULL,
        f"{max_sessions} sessions are open, as many as may: close some, or raise --max-resident-sessions",
        metadata={"max_resident_sessions": str(max_sessions)},
    )


def timed_out(timeout_microseconds: int) -> StreamcellError:
    """Returns the error for a request that was withdrawn because its batch did not come in time."""
    return StreamcellError(
        Reason.TIMED_OUT,
        f"timeout: its batch was not formed within {timeout_microseconds} µs; nothing of it was applied",
        metadata={"field": "timeout"},
    )


def draining() -> StreamcellError:
    """Returns the error for work that reaches a server on its way out."""
    return StreamcellError(Reason.DRAINING, "this server is stopping: connect again, to another one")


def too_many_steps(got: int, max_steps: int) -> StreamcellError:
    """Returns the error for a message with more steps than one may have."""
    return StreamcellError(
        Reason.TOO_MANY_STEPS,
        f"{got} steps in one message; the most is {max_steps}: cut it into several",
        metadata={"max_message_steps": str(max_steps)},
    )


def message_too_large(got_bytes: int, max_bytes: int) -> StreamcellError:
    """Returns the error for a message with more bytes than one may have."""
    return StreamcellError(
        Reason.MESSAGE_TOO_LARGE,
        f"a message of {got_bytes} bytes; the most is {max_bytes}: cut it into several",
        metadata={"max_message_bytes": str(max_bytes)},
    )


def internal() -> StreamcellError:
    """Returns the error for a fault of the server's own, with a fresh id to look for in the log."""
    error_id = uuid.uuid4().hex[:12]
    return StreamcellError(
        Reason.INTERNAL,
        f"a fault of the server; its log has it under error_id {error_id}",
        metadata={"error_id": error_id},
    )
