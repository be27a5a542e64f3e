"""The settings of a server: one frozen object that checks its values and names the flag of a wrong one.

Every field is a flag (`--max-batch-steps`) and an environment variable (`STREAMCELL_MAX_BATCH_STEPS`). The
flag wins. This module does not know what the settings do.
"""

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from service.errors import ConfigError

ENV_PREFIX = "STREAMCELL_"
LARGEST = 2**31 - 1  # the largest size that gRPC takes, and far above every sensible setting


class Address(NamedTuple):
    """A host, or several with commas between, and a port to listen on; port 0 picks a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        hosts = (f"[{host}]" if ":" in host else host for host in self.hosts)
        return f"{','.join(hosts)}:{self.port}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts, one by one."""
        return tuple(self.host.split(","))

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Returns the address that `HOST:PORT` or `HOST,HOST:PORT` names. An IPv6 host is in brackets.

        Raises:
            ValueError: the text has another form, or the port is not in 0..65535.
        """
        hosts, colon, port = text.rpartition(":")
        bare = [_without_brackets(host.strip()) for host in hosts.split(",")]
        if not colon or not all(bare):
            raise ValueError(f"{text!r} is not HOST:PORT")
        if not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"{text!r} has no port in 0..65535")
        return cls(",".join(bare), int(port))


def _without_brackets(host: str) -> str:
    """Returns a host without the brackets around IPv6; "" where they are missing or wrong."""
    bare = host.removeprefix("[").removesuffix("]")
    has_brackets = host == f"[{bare}]"
    return bare if has_brackets == (":" in bare) and (has_brackets or host == bare) else ""


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/,*?#@]+")
PRINCIPAL_LIMITS = (
    "principal_max_sessions",
    "principal_max_streams",
    "principal_steps_per_second",
    "principal_bytes_per_second",
)
_FILES = ("allowed_artifacts", "snapshot_key", "tls_cert", "tls_key", "tls_client_ca", "tokens", "jwt_keys")
_LEAST = {
    "session_ttl_seconds": 0,
    "drain_timeout_seconds": 0,
    "drain_delay_seconds": 0,
    "store_wait_seconds": 0,
    "max_metadata_bytes": 1024,
    "max_hold_seconds": 0,
    "arrival_timeout_seconds": 0.01,
    "keepalive_seconds": 0.1,
    "models_poll_seconds": 0,
    "reload_seconds": 0,
    **dict.fromkeys(PRINCIPAL_LIMITS, 0),
    "checkpoint_interval_seconds": 0.01,
}


def _flag(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a server. Each field's text is the help of its flag.

    Raises:
        ConfigError: a value is out of its range, or does not fit another setting.
    """

    listen: Address = _flag(
        Address("127.0.0.1", 50051),
        "HOST:PORT to serve gRPC on; a name means all its addresses, [::] both families, commas part several"
        " hosts; port 0 picks a free port",
    )
    metrics_listen: Address = _flag(
        Address("127.0.0.1", 9090), "HOST:PORT to serve Prometheus metrics on; as in --listen"
    )
    models: pathlib.Path = _flag(
        pathlib.Path("model/artifacts"), "folder with the models, as NAME/VERSION/model.pt"
    )
    models_poll_seconds: float = _flag(
        5.0, "seconds between searches of the --models folder for new versions; 0: search on SIGHUP only"
    )
    on_new_version: str = _flag(
        "keep",
        "what happens to open sessions when a new version of their model appears. keep: they stay on their"
        " version until they end; migrate: they move to the new version, if its state has the same layout",
        ("keep", "migrate"),
    )
    allowed_artifacts: str = _flag(
        "",
        "file with the SHA-256 of each artifact that may be loaded, as sha256sum writes it; no other one is"
        " loaded, as an artifact is code",
    )
    store: str = _flag(
        "memory:",
        "where sessions survive a restart: sqlite:PATH, redis://HOST:PORT/NUMBER, or memory: for nowhere",
    )
    durable_without_disk: str = _flag(
        "warn",
        "what happens to durable sessions where the store cannot tell when a step is on its disk (Redis with"
        " appendonly no, or older than 7.2). warn: a line in the log at the start; refuse: they are refused",
        ("warn", "refuse"),
    )
    store_wait_seconds: float = _flag(
        60.0,
        "most seconds to wait at the start for a store that is away, while health says NOT_SERVING; 0: do not"
        " wait",
    )
    checkpoint_interval_seconds: float = _flag(
        1.0,
        "seconds between two writes of changed sessions to the store; only a durable session's steps wait for"
        " a write",
    )
    max_changed_sessions: int = _flag(
        10_000, "number of changed sessions at which a write to the store starts early"
    )
    snapshot_key: str = _flag(
        "",
        "file of keys, one a line: SnapshotSession signs with the first, and RestoreSession takes only what"
        " one of them signed; `python -m service snapshot-key` makes one",
    )
    device: str = _flag(
        "auto", "where the models run; auto takes CUDA if it is available", ("auto", "cpu", "cuda")
    )
    workers: int = _flag(1, "number of server processes; they share the port and the sessions")
    front: str = _flag(
        "auto", "the gRPC server; auto takes envoy if it can run here", ("auto", "grpcio", "envoy")
    )
    threads: int = _flag(
        1, "CPU threads of one cell call; with 3 or more, the last bits of a prediction may change"
    )
    cpu_scheduling: str = _flag(
        "batch",
        "how the system schedules the server. batch: up to twice the steps per core; normal: lower latency"
        " if other programs keep all cores busy",
        ("batch", "normal"),
    )
    max_resident_sessions: int = _flag(
        100_000, "most sessions in memory, per version of a model and worker; with a store, more may be open"
    )
    time_order: str = _flag(
        "rising",
        "for models that use time: rising refuses a step that is not later than its session's last one; any"
        " takes it",
        ("rising", "any"),
    )
    session_ttl_seconds: float = _flag(3600.0, "idle seconds after which a session expires; 0: never")
    replies_kept: int = _flag(8, "replies remembered per session, for repeated steps")
    max_queue_steps: int = _flag(
        262_144,
        "most steps waiting, per version of a model and worker; further steps are refused with OVERLOADED",
    )
    max_batch_steps: int = _flag(1024, "most steps in one cell call; long inputs have a call of their own")
    max_piece_steps: int = _flag(
        64, "most time steps of a long input in one iteration; single steps run in between"
    )
    max_hold_seconds: float = _flag(
        0.003,
        "most seconds that a few unary steps wait for more to join their batch, when waiting is seen to pay;"
        " 0: never",
    )
    max_message_steps: int = _flag(65_536, "most steps in one message")
    max_message_bytes: int = _flag(4 << 20, "most bytes in one message")
    max_metadata_bytes: int = _flag(16 << 10, "most bytes in the headers of one request")
    max_horizon_steps: int = _flag(1000, "most steps ahead in one forecast")
    max_stream_sessions: int = _flag(100_000, "most sessions that one stream may bind to numbers")
    max_stream_messages: int = _flag(
        256,
        "most unanswered messages of one stream; then the server stops reading the stream until it answers",
    )
    max_connections: int = _flag(10_000, "most connections of clients, per worker; further ones are closed")
    max_connection_streams: int = _flag(
        1024, "most calls and streams under way on one connection; clients wait, or open another connection"
    )
    max_active_calls: int = _flag(
        16_384,
        "most calls and streams under way, per worker; further ones, health checks apart, are refused with"
        " OVERLOADED",
    )
    max_early_resets: int = _flag(
        500,
        "most calls of one connection that its client may cancel unanswered, within a second, if they are"
        " half of its calls or more; then the envoy front closes the connection. Gateways whose clients have"
        " short deadlines need more",
    )
    max_arriving_bytes: int = _flag(
        64 << 20,
        "most bytes, per worker, of messages that have arrived in part, or are large and unanswered. Above,"
        " the oldest that has arrived in part is refused, and compressed messages wait",
    )
    arrival_timeout_seconds: float = _flag(
        60.0, "most seconds from the first byte of a message to its last; on the envoy front"
    )
    keepalive_seconds: float = _flag(
        10.0,
        "seconds between two pings of a connection, which is closed if a ping is unanswered for half as long",
    )
    drain_timeout_seconds: float = _flag(20.0, "most seconds to finish accepted steps after SIGTERM")
    drain_delay_seconds: float = _flag(
        0.0,
        "seconds after SIGTERM for which the server reports NOT_SERVING and still serves; more than the time"
        " between two looks of whoever polls its health",
    )
    reflection: bool = _flag(True, "whether to offer server reflection, for tools such as grpcurl")
    channelz: bool = _flag(
        False, "whether to offer channelz, the state of connections and calls; only on the grpcio front"
    )
    cors_origins: str = _flag(
        "",
        "origins of web pages that may call from a browser, separated by commas, or * for all; needs"
        " --front envoy",
    )
    tls_cert: str = _flag("", "PEM file of the server's certificate chain; needs --tls-key")
    tls_key: str = _flag("", "PEM file of the server's private key; needs --tls-cert")
    tls_client_ca: str = _flag(
        "",
        "PEM file of the authority that must have signed a client's certificate; sessions belong to whom the"
        " certificate names, where no tokens are asked for; needs --tls-cert",
    )
    insecure: bool = _flag(
        False, "whether to serve plain text, without TLS, on addresses that other machines can reach"
    )
    tokens: str = _flag(
        "",
        "file with the hashes of bearer tokens, made by `python -m service token`; callers must then send"
        " one, and sessions belong to its principal",
    )
    jwt_keys: str = _flag(
        "",
        "file with an identity provider's public keys, as a JSON Web Key Set or PEM; callers must then send a"
        " signed token (JWT), or one of --tokens, and sessions belong to its sub; needs --jwt-audience",
    )
    jwt_audience: str = _flag("", "the aud that a signed token must have; needs --jwt-keys")
    jwt_issuer: str = _flag("", "the iss that a signed token must have; needs --jwt-keys")
    principal_max_sessions: int = _flag(
        0, "most sessions in memory that one principal may open, per worker; 0: no limit of its own"
    )
    principal_max_streams: int = _flag(0, "most streams of one principal, per worker; 0: no limit of its own")
    principal_steps_per_second: float = _flag(
        0.0,
        "most steps a second of one principal, per worker: unary calls beyond are refused (QUOTA_EXCEEDED),"
        " and streams are read more slowly; 0: no limit of its own",
    )
    principal_bytes_per_second: float = _flag(
        0.0,
        "most bytes a second in the messages of one principal, per worker, likewise; 0: no limit of its own",
    )
    reload_seconds: float = _flag(
        5.0,
        "seconds between two looks at the files of tokens, keys and certificates, which are read again when"
        " they change; 0: look on SIGHUP only",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check_range(field.name, getattr(self, field.name))
            choices = field.metadata["choices"]
            if choices and getattr(self, field.name) not in choices:
                raise _wrong(field.name, f"must be one of {', '.join(choices)}")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise _wrong("tls_cert", "goes with --tls-key")
        if self.tls_client_ca and not self.tls_cert:
            raise _wrong("tls_client_ca", "needs --tls-cert and --tls-key")
        if bool(self.jwt_keys) != bool(self.jwt_audience):
            raise _wrong("jwt_keys", "goes with --jwt-audience, or tokens for other services would be taken")
        if self.jwt_issuer and not self.jwt_keys:
            raise _wrong("jwt_issuer", "needs --jwt-keys")
        if not (self.tokens or self.jwt_keys or self.tls_client_ca):
            for name in PRINCIPAL_LIMITS:
                if getattr(self, name):
                    raise _wrong(name, "needs principals: --tokens, --jwt-keys or --tls-client-ca")
        if self.channelz and self.front == "envoy":
            raise _wrong(
                "channelz", "is of --front grpcio; Envoy shows its connections in its own statistics"
            )
        if self.max_arriving_bytes < self.max_message_bytes:
            raise _wrong("max_arriving_bytes", "must hold a message of --max-message-bytes")
        self._check_origins()

    @property
    def shares_port(self) -> bool:
        """Whether more than one socket listens on the port, so that it is kept for them."""
        return self.workers > 1 or len(self.listen.hosts) > 1

    def _check_origins(self) -> None:
        origins = [each.strip() for each in self.cors_origins.split(",")] if self.cors_origins else []
        if origins and self.front != "envoy":
            raise _wrong("cors_origins", "needs --front envoy, which serves browsers")
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise _wrong(
                    "cors_origins", f"{origin!r} is no origin, such as https://example.com, and not *"
                )

    def _check_range(self, name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        least = _LEAST.get(name, 1)
        if not least <= value < float("inf"):
            raise _wrong(name, f"must be a number of at least {least}, not {value}")
        if value > LARGEST:
            raise _wrong(name, f"must be at most {LARGEST}, not {value}")


def from_command(arguments: Sequence[str], environment: Mapping[str, str]) -> Config:
    """Returns the settings from a command line and an environment.

    Raises:
        ConfigError: a value is wrong. The message names the value's flag or variable.
        SystemExit: the command line has an unknown flag, or asks for help.
    """
    given = vars(_parser().parse_args(arguments))
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        variable = ENV_PREFIX + field.name.upper()
        text = given[field.name]
        source = _flag_of(field.name)
        if text is None and environment.get(variable):
            text, source = environment[variable], variable
        if text is not None:
            values[field.name] = _convert(field, text, source)
    try:
        return Config(**values)
    except ConfigError as error:
        raise ConfigError(as_given(str(error), arguments, environment)) from None


def as_given(message: str, arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Returns an error's message, with the variable in place of each flag that was set by its variable."""
    given = vars(_parser().parse_args(arguments))
    for field in dataclasses.fields(Config):
        variable = ENV_PREFIX + field.name.upper()
        if given[field.name] is None and environment.get(variable):
            message = re.sub(rf"(?<!\S){_flag_of(field.name)}(?![\w-])", variable, message)
    return message


def to_environment(settings: Config) -> dict[str, str]:
    """Returns the environment variables that pass these settings to another process."""
    return {
        ENV_PREFIX + field.name.upper(): str(getattr(settings, field.name))
        for field in dataclasses.fields(Config)
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serves predictions of recurrent models over live streams.",
        epilog=f"Each flag can also be set by a variable: --max-batch-steps by {ENV_PREFIX}MAX_BATCH_STEPS.",
        allow_abbrev=False,
    )
    for field in dataclasses.fields(Config):
        text = f"{field.metadata['help']} ({_shown(field.default)})"
        flag = parser.add_argument(_flag_of(field.name), dest=field.name, metavar=_metavar(field), help=text)
        if isinstance(field.default, bool):
            flag.nargs, flag.const = "?", "true"  # a flag alone means true
    return parser


def _convert(field: "dataclasses.Field[Any]", text: str, source: str) -> Any:
    kind: type[Any] = type(field.default)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is Address:
            return Address.parse(text)
        return pathlib.Path(text) if isinstance(field.default, pathlib.Path) else kind(text)
    except KeyError:
        raise ConfigError(f"{source}: {text!r} is not true or false") from None
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def _flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def _wrong(name: str, message: str) -> ConfigError:
    return ConfigError(f"{_flag_of(name)}: {message}")


def _shown(default: Any) -> str:
    return "none" if default == "" else str(default).lower() if isinstance(default, bool) else str(default)


def _metavar(field: "dataclasses.Field[Any]") -> str:
    choices: tuple[str, ...] = field.metadata["choices"]
    if field.name in _FILES:
        return "FILE"
    return "|".join(choices) if choices else field.name.rsplit("_", 1)[-1].upper()
