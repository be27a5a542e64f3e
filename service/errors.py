"""The errors that callers see: a canonical code, a reason for machines, a sentence for people.

    StreamcellError
     ·  reason               one of Reason; fixes the code
     ·  message              says what is wrong and what to do
     ·  metadata             facts for machines: "field", "expected_step_index", "error_id" ...
     ·  retry_delay_seconds  for OVERLOADED, QUOTA_EXCEEDED, STORE_UNAVAILABLE: when to come again

REASONS says for each reason its code, its messages and its metadata; `refusal` makes an error from there:

    raise errors.refusal(Reason.STEP_GAP, expected_step_index=5, got=9)

Every other exception is a fault of the server: callers get INTERNAL and an id, the log has the rest.
This module does not know gRPC; codes are the numbers of google.rpc.Code.
"""

import dataclasses
import enum
import functools
import string
from collections.abc import Mapping
from typing import Literal

DOMAIN = "streamcell"


class Code(enum.IntEnum):
    """The canonical codes in use, with the numbers of google.rpc.Code."""

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
    UNAUTHENTICATED = 16


class Reason(enum.StrEnum):
    """The reasons of the API's error table (protos/streamcell/v1/streamcell.proto)."""

    UNAUTHENTICATED = "UNAUTHENTICATED"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    TOO_MANY_STEPS = "TOO_MANY_STEPS"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    MODEL_NOT_HERE = "MODEL_NOT_HERE"
    SESSION_NOT_FOUND = "SESSION_NOT_FOUND"
    SESSION_EXPIRED = "SESSION_EXPIRED"
    SESSION_EVICTED = "SESSION_EVICTED"
    SESSION_EXISTS = "SESSION_EXISTS"
    STEP_CONFLICT = "STEP_CONFLICT"
    STEP_FORGOTTEN = "STEP_FORGOTTEN"
    STEP_GAP = "STEP_GAP"
    MODEL_CHANGED = "MODEL_CHANGED"
    SNAPSHOT_REJECTED = "SNAPSHOT_REJECTED"
    DURABLE_UNSUPPORTED = "DURABLE_UNSUPPORTED"
    SESSION_FENCED = "SESSION_FENCED"
    OVERLOADED = "OVERLOADED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    SESSIONS_FULL = "SESSIONS_FULL"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    DRAINING = "DRAINING"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    NOT_IMPLEMENTED = "NOT_IMPLEMENTED"
    INTERNAL = "INTERNAL"
    # The proto's table does not have these: other APIs answer with them.
    SERVICE_NOT_FOUND = "SERVICE_NOT_FOUND"  # the health service
    CHANNELZ_NOT_FOUND = "CHANNELZ_NOT_FOUND"  # channelz
    TIMED_OUT = "TIMED_OUT"  # the Open Inference Protocol, whose requests may limit their wait


_MAX_TEXT = 128  # characters of a caller's text in an error: statuses travel as headers

# Which of a reason's messages an error has. Most reasons have the usual one alone.
Case = Literal[
    "usual", "certificate", "owned_elsewhere", "session_ended", "stored_record", "other_artifact", "calls",
    "bytes",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Message:
    """A message as a template of facts, and the facts that are metadata as well.

    A fact that the template marks with `!r` is a caller's text: the message has it as `brief` gives it, the
    metadata has its first 128 characters.
    """

    template: str
    metadata: tuple[str, ...] = ()

    @functools.cached_property
    def facts(self) -> frozenset[str]:
        """The names in the template."""
        return frozenset(name for _, name, _, _ in string.Formatter().parse(self.template) if name)

    @functools.cached_property
    def _callers_texts(self) -> tuple[str, ...]:
        return tuple(name for name in sorted(self.facts) if f"{{{name}!r}}" in self.template)

    def text(self, facts: Mapping[str, str | float]) -> str:
        """Returns the message with its facts filled in."""
        short = {name: _cut(str(facts[name]), "…") for name in self._callers_texts}
        return self.template.format_map({**facts, **short} if short else facts)

    def metadata_from(self, facts: Mapping[str, str | float]) -> dict[str, str]:
        """Returns the metadata, taken from the facts."""
        found = {name: str(facts[name]) for name in self.metadata}
        for name in self._callers_texts:
            if name in found:
                found[name] = _cut(found[name])
        return found


@dataclasses.dataclass(frozen=True)
class ReasonSpec:
    """What a reason means: its code, its usual message, and further messages by case.

    `usual` is None for a reason that the server never sends. `retry_delay_seconds` is for a reason that
    always asks for the same delay; a message's fact of that name comes first.
    """

    code: Code
    usual: Message | None
    cases: Mapping[Case, Message] = dataclasses.field(default_factory=dict)
    retry_delay_seconds: float = 0.0

    @functools.cached_property
    def messages(self) -> dict[Case, Message]:
        """Every message of the reason, by case."""
        return {"usual": self.usual, **self.cases} if self.usual else {}


# A fact's name is also its key in the metadata.
REASONS: Mapping[Reason, ReasonSpec] = {
    Reason.UNAUTHENTICATED: ReasonSpec(
        Code.UNAUTHENTICATED,
        Message(
            "the call shows no token that is valid here: send one as 'authorization: Bearer TOKEN', and ask"
            " whoever runs the server for a new one if yours has expired"
        ),
        {
            "certificate": Message(
                "the client's certificate names no client ({problem}): give it one URI or one DNS name among"
                " its subject alternative names, or one common name"
            ),
        },
    ),
    Reason.INVALID_ARGUMENT: ReasonSpec(
        Code.INVALID_ARGUMENT,
        Message("{field}: {problem}", metadata=("field",)),
    ),
    Reason.TOO_MANY_STEPS: ReasonSpec(
        Code.INVALID_ARGUMENT,
        Message(
            "{got} steps in one message; the most is {max_message_steps}: cut it into several",
            metadata=("max_message_steps",),
        ),
    ),
    Reason.MODEL_NOT_FOUND: ReasonSpec(
        Code.NOT_FOUND,
        Message("no model {model!r}; served: {served}", metadata=("model",)),
    ),
    Reason.MODEL_NOT_HERE: ReasonSpec(
        Code.UNAVAILABLE,
        Message(
            "the session runs on {model!r}, and the newest version here is {newest!r}:"
            " ask another server, or come again when this one has the version",
            metadata=("model",),
        ),
        retry_delay_seconds=1.0,
    ),
    Reason.SESSION_NOT_FOUND: ReasonSpec(
        Code.NOT_FOUND,
        Message(
            "no session {session_id!r}: open it with OpenSession, or begin it with a step of step_index 0",
            metadata=("session_id",),
        ),
        {"session_ended": Message("the session was closed or expired before this ran: open it again")},
    ),
    Reason.SESSION_EXPIRED: ReasonSpec(
        Code.NOT_FOUND,
        Message(
            "session {session_id!r} expired because it was idle: open it again and feed it its history",
            metadata=("session_id",),
        ),
    ),
    # Reserved: the API has the reason, and no server sends it.
    Reason.SESSION_EVICTED: ReasonSpec(Code.NOT_FOUND, None),
    Reason.SESSION_EXISTS: ReasonSpec(
        Code.ALREADY_EXISTS,
        Message(
            "session {session_id!r} is open already: resume it, or choose another id",
            metadata=("session_id",),
        ),
    ),
    Reason.STEP_CONFLICT: ReasonSpec(
        Code.ALREADY_EXISTS,
        Message(
            "step_index {step_index} was applied with another input: a retry must repeat x and time_ns",
            metadata=("step_index",),
        ),
    ),
    Reason.STEP_FORGOTTEN: ReasonSpec(
        Code.OUT_OF_RANGE,
        Message(
            "step_index {step_index} was applied, but its reply is no longer kept:"
            " go on with step {expected_step_index}",
            metadata=("expected_step_index",),
        ),
    ),
    Reason.STEP_GAP: ReasonSpec(
        Code.FAILED_PRECONDITION,
        Message(
            "step_index {got} is ahead of the session: send step {expected_step_index} next",
            metadata=("expected_step_index",),
        ),
    ),
    Reason.MODEL_CHANGED: ReasonSpec(
        Code.FAILED_PRECONDITION,
        Message(
            "session {session_id!r} runs on {model}, not on {asked!r}:"
            " leave the model out, or use another session",
            metadata=("session_id", "model"),
        ),
        {
            "other_artifact": Message(
                "the session runs on another artifact than is served here as {model!r}: a new artifact takes"
                " a new version",
                metadata=("model",),
            ),
        },
    ),
    Reason.SNAPSHOT_REJECTED: ReasonSpec(
        Code.FAILED_PRECONDITION,
        Message("this snapshot cannot be used: {problem}"),
        {
            "stored_record": Message(
                "session {session_id!r} cannot be taken from the store: {problem}."
                " CloseSession forgets it; it can then be opened anew",
                metadata=("session_id",),
            ),
        },
    ),
    Reason.DURABLE_UNSUPPORTED: ReasonSpec(
        Code.FAILED_PRECONDITION,
        Message(
            "this server's store cannot tell when a step is on its disk ({problem}), and the server refuses"
            " durable sessions then: open the session without durable, or ask another server"
        ),
    ),
    Reason.SESSION_FENCED: ReasonSpec(
        Code.ABORTED,
        Message(
            "session {session_id!r} was taken over by another server: go on there, or take it back with"
            " OpenSession, which tells where it stands",
            metadata=("session_id",),
        ),
        {
            # For a step without an index, which takes no session over.
            "owned_elsewhere": Message(
                "session {session_id!r} belongs to another server, which does not answer: take it over with"
                " OpenSession, which tells where it stands, or give the step_index",
                metadata=("session_id",),
            ),
            "session_ended": Message("another server took the session over before this ran: open it again"),
        },
    ),
    Reason.OVERLOADED: ReasonSpec(
        Code.RESOURCE_EXHAUSTED,
        Message("{queued_steps} steps are waiting, as many as may: come again in {retry_delay_seconds:g} s"),
        {
            "calls": Message(
                "{num_calls} calls are under way, as many as may: come again in {retry_delay_seconds:g} s"
            ),
            "bytes": Message(
                "the message did not arrive whole before the bytes of others needed its room: come again in"
                " {retry_delay_seconds:g} s"
            ),
        },
    ),
    Reason.QUOTA_EXCEEDED: ReasonSpec(
        Code.RESOURCE_EXHAUSTED,
        Message(
            "the principal's limit of {limit} is reached: {problem}; come again in"
            " {retry_delay_seconds:.3g} s",
            metadata=("limit",),
        ),
    ),
    Reason.SESSIONS_FULL: ReasonSpec(
        Code.RESOURCE_EXHAUSTED,
        Message(
            "{max_resident_sessions} sessions are open, as many as may: close some, or raise"
            " --max-resident-sessions",
            metadata=("max_resident_sessions",),
        ),
    ),
    Reason.MESSAGE_TOO_LARGE: ReasonSpec(
        Code.RESOURCE_EXHAUSTED,
        Message(
            "a message of {got_bytes} bytes; the most is {max_message_bytes}: cut it into several",
            metadata=("max_message_bytes",),
        ),
    ),
    Reason.DRAINING: ReasonSpec(
        Code.UNAVAILABLE,
        Message("this server is stopping: connect again, to another one"),
    ),
    Reason.STORE_UNAVAILABLE: ReasonSpec(
        Code.UNAVAILABLE,
        Message("the store cannot be used now ({problem}): come again"),
        retry_delay_seconds=0.5,
    ),
    Reason.NOT_IMPLEMENTED: ReasonSpec(
        Code.UNIMPLEMENTED,
        Message("{method} is a stream, which takes a gRPC client (application/grpc); here are unary methods"),
    ),
    Reason.INTERNAL: ReasonSpec(
        Code.INTERNAL,
        Message("a fault of the server; its log has it under error_id {error_id}", metadata=("error_id",)),
    ),
    Reason.SERVICE_NOT_FOUND: ReasonSpec(
        Code.NOT_FOUND,
        Message("no such service; leave it empty for the whole server"),
    ),
    Reason.CHANNELZ_NOT_FOUND: ReasonSpec(
        Code.NOT_FOUND,
        Message("{problem}: ask GetServers or GetTopChannels for the ids that there are"),
    ),
    Reason.TIMED_OUT: ReasonSpec(
        Code.DEADLINE_EXCEEDED,
        Message(
            "{field}: its batch was not formed within {timeout_microseconds} µs; nothing of it was applied",
            metadata=("field",),
        ),
    ),
}


class StreamcellError(Exception):
    """An error for the caller: a reason, a message, metadata, and when to come again."""

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
        return REASONS[self.reason].code


class ConfigError(Exception):
    """A setting, or something it points to, is wrong; the message names it. The server does not start."""


def brief(text: str) -> str:
    """Returns a caller's text, quoted and cut to what fits in a message: statuses travel as headers."""
    return repr(_cut(text, "…"))


def _cut(text: str, mark: str = "") -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + mark


def refusal(reason: Reason, case: Case = "usual", **facts: str | float) -> StreamcellError:
    """Returns the error for a reason.

    Args:
        reason: a reason that the server sends.
        case: which of the reason's messages.
        facts: a value for each name in the message's template, and nothing more.
    """
    spec = REASONS[reason]
    message = spec.messages[case]
    return StreamcellError(
        reason,
        message.text(facts),
        metadata=message.metadata_from(facts),
        retry_delay_seconds=float(facts.get("retry_delay_seconds", spec.retry_delay_seconds)),
    )


def invalid_argument(field: str, problem: str) -> StreamcellError:
    """Returns the error for a request with something wrong in `field`: half of all refusals."""
    return refusal(Reason.INVALID_ARGUMENT, field=field, problem=problem)


def session_ended(end: Reason | None) -> StreamcellError:
    """Returns the error for work whose session ended before the work ran.

    `end` is why the session ended; None: a caller closed it.
    """
    reason = Reason.SESSION_FENCED if end is Reason.SESSION_FENCED else Reason.SESSION_NOT_FOUND
    return refusal(reason, case="session_ended")
