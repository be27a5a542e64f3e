"""The frozen values that callers pass in and get back.

Settings check themselves and name the field that is wrong. Knows nothing of gRPC and of messages: `convert`
turns messages into these values.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

OpenMode = Literal["open", "create", "resume"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Timeout:
    """How long things may take, in seconds; each must be positive.

    `call_seconds` bounds one attempt of one call. A stream has no such bound. While a call or stream is open,
    pings `keepalive_seconds` apart find out whether the connection is dead. For a stricter bound, wrap the
    loop in `asyncio.timeout`.
    """

    connect_seconds: float = 10.0
    call_seconds: float = 30.0
    keepalive_seconds: float = 60.0

    def __post_init__(self) -> None:
        _check_positive(self)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How many steps and bytes may be in memory or in a message at once; each must be at least 1.

    `window_steps` bounds the steps of a stream that were taken from the caller and have no prediction yet.
    `tail_steps` bounds the steps of a session that the client remembers after it sent them, until the server
    says that they are in its store. It sends those again to a server that crashed; beyond the bound it
    forgets the oldest. `message_steps` and `message_bytes` bound one message.

    A server may allow less. It says so when a session is opened, and the lesser bound counts. The number of
    replies that a server remembers for repetitions bounds the window, too.
    """

    window_steps: int = 8
    tail_steps: int = 65_536
    message_steps: int = 8192
    message_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        _check_positive(self)

    def within(self, window_steps: int, message_steps: int, message_bytes: int) -> "Limits":
        """Returns these limits, each no larger than the server's; a server that says 0 has no such limit."""
        return dataclasses.replace(
            self,
            window_steps=min(self.window_steps, window_steps or self.window_steps),
            message_steps=min(self.message_steps, message_steps or self.message_steps),
            message_bytes=min(self.message_bytes, message_bytes or self.message_bytes),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How failed attempts are repeated: exponential backoff with full jitter, bounded by number and time.

    Before attempt n + 1 comes a random delay of up to `initial_delay_seconds * multiplier ** (n - 1)`, at
    most `max_delay_seconds`. Attempts and time count from zero again after each success. `max_attempts=1`
    never retries. With the defaults the time is the bound that counts: a minute, enough for a server to
    restart. If a call changes nothing, gRPC makes it a second time before an attempt counts as failed by
    UNAVAILABLE.
    """

    max_attempts: int = 100
    max_total_seconds: float = 60.0
    initial_delay_seconds: float = 0.1
    max_delay_seconds: float = 2.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        _check_positive(self)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """Encrypts the connection and says which certificates to trust; all PEM.

    Without `root_certificates` the client trusts the system's. `private_key` and `certificate_chain` go
    together and prove who the client is. `server_name` is the name that the server's certificate must have
    if that is not the host of the target.
    """

    root_certificates: bytes | None = None
    private_key: bytes | None = dataclasses.field(default=None, repr=False)
    certificate_chain: bytes | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("Tls: private_key and certificate_chain go together")


@dataclasses.dataclass(frozen=True, slots=True)
class Variable:
    """One named value in a row of a model's inputs, outputs or future values.

    `target`, `role` and `quantile` are for outputs: which input the output is about, what it says of that
    input (such as "mean" or "quantile"), and which quantile.
    """

    name: str
    unit: str = ""
    target: str = ""
    role: str = ""
    quantile: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """A model that the server serves; `manifest_json` has everything that is known about the model."""

    name: str
    version: str
    description: str
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    future: tuple[Variable, ...]
    uses_time: bool
    step_interval_seconds: float
    state_bytes: int
    num_sessions: int
    retiring: bool
    manifest_json: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class SessionInfo:
    """How far a session has got on the server, and which server owns it (`epoch`)."""

    session_id: str
    model_name: str
    model_version: str
    next_step_index: int
    num_durable_steps: int
    last_time_ns: int
    ttl_seconds: float
    durable: bool
    epoch: int


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """What a model predicts after one step.

    `y` is in the model's units, in the order of its outputs. `num_durable_steps` is how many steps, counted
    from the session's first, are in the server's store.
    """

    step_index: int
    y: tuple[float, ...]
    num_durable_steps: int = 0


def _check_positive(settings: Timeout | Limits | RetryPolicy) -> None:
    kind = type(settings).__name__
    fields: Iterable[dataclasses.Field[float]] = dataclasses.fields(settings)
    for field in fields:
        value = getattr(settings, field.name)
        whole = field.type in (int, "int")
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise TypeError(f"{kind}: {field.name} must be {'a whole number' if whole else 'a number'}")
        if not math.isfinite(value) or value <= 0:
            raise ValueError(f"{kind}: {field.name} must be positive and finite, not {value}")
    if isinstance(settings, RetryPolicy) and settings.multiplier < 1:
        raise ValueError(f"RetryPolicy: multiplier must be at least 1, not {settings.multiplier}")
