"""The frozen values that callers give and get.

Settings check themselves and name the field at fault. The module knows neither gRPC nor the wire: `convert`
makes these values out of messages.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

OpenMode = Literal["open", "create", "resume"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Timeout:
    """How long things may take, in seconds; each must be positive.

    `call_seconds` bounds one attempt of one call. A stream has no bound of its own: a dead connection is
    found by pings, `keepalive_seconds` apart while a call or stream is open; for more, wrap the loop in
    `asyncio.timeout`.
    """

    connect_seconds: float = 10.0
    call_seconds: float = 30.0
    keepalive_seconds: float = 60.0

    def __post_init__(self) -> None:
        _check_positive(self)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much may be held or sent at once; each must be at least 1.

    `window_steps` bounds the steps of a stream that are taken from the caller and not yet given back as
    predictions. What a server takes less of is bounded by the server: it tells when a session is opened,
    also how many replies it repeats after a broken connection, which bounds the window.

    `tail_steps` bounds the steps of a session that are kept after they were sent, until the server says that
    they are in its store: a server that crashes can be sent those again. The oldest are let go beyond it.
    """

    window_steps: int = 8
    tail_steps: int = 65_536
    message_steps: int = 8192
    message_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        _check_positive(self)

    def within(self, window_steps: int, message_steps: int, message_bytes: int) -> "Limits":
        """Returns these limits, each at most what a server says; 0: it does not say."""
        return dataclasses.replace(
            self,
            window_steps=min(self.window_steps, window_steps or self.window_steps),
            message_steps=min(self.message_steps, message_steps or self.message_steps),
            message_bytes=min(self.message_bytes, message_bytes or self.message_bytes),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How failed attempts are repeated: exponential backoff with full jitter, bounded twice.

    A call that changes nothing is made once more by gRPC before an attempt counts as failed by UNAVAILABLE.
    Before attempt n + 1 comes a random delay of up to `initial_delay_seconds * multiplier ** (n - 1)`, at
    most `max_delay_seconds`. Attempts and time are counted anew after each success. `max_attempts=1`
    never retries. By default it is the time that bounds: a minute, in which a server can restart.
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
    """Says that the connection is encrypted, and whom to trust; all PEM.

    Without `root_certificates` the system's are trusted. `private_key` and `certificate_chain` go
    together and prove who the client is. `server_name` is what the server's certificate must say when
    that is not the host of the target.
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
    """One named value of a model's input, prediction or future row."""

    name: str
    unit: str = ""
    target: str = ""
    role: str = ""
    quantile: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """A model being served; `manifest_json` holds everything that is known about it."""

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
    """A session as it stands on the server."""

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

    `y` is in the model's units, in the order of its outputs. `num_durable_steps`: the first so many steps
    of the session are in the server's store; 0: none are.
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
