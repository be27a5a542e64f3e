"""The settings of a server: one frozen value that checks itself and names the flag at fault.

Every field is a flag (`--max-batch-steps`) and an environment variable (`STREAMCELL_MAX_BATCH_STEPS`);
the flag wins. This module does not know what the settings do.
"""

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from service.errors import ConfigError

ENV_PREFIX = "STREAMCELL_"
LARGEST = 2**31 - 1  # what gRPC takes as a size at most, and far above every sensible setting


class Address(NamedTuple):
    """A host and a port to listen on; port 0 picks a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Returns the address that `HOST:PORT` names; an IPv6 host stands in brackets.

        Raises:
            ValueError: it is not of that form, or the port is not in 0..65535.
        """
        host, colon, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not colon or not bare or (":" in bare and bare == host):
            raise ValueError(f"{text!r} is not HOST:PORT")
        if not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"{text!r} has no port in 0..65535")
        return cls(bare, int(port))


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/,*?#@]+")
_LEAST = {
    "session_ttl_seconds": 0,
    "drain_timeout_seconds": 0,
    "max_metadata_bytes": 1024,
    "max_hold_seconds": 0,
    "models_poll_seconds": 0,
    "checkpoint_interval_seconds": 0.01,
}


def _flag(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The settings; see each flag's text.

    Raises:
        ConfigError: a value is out of its range, or needs what this version does not have.
    """

    listen: Address = _flag(Address("127.0.0.1", 50051), "HOST:PORT to serve gRPC on; port 0 picks one")
    metrics_listen: Address = _flag(Address("127.0.0.1", 9090), "HOST:PORT to serve Prometheus metrics on")
    models: pathlib.Path = _flag(pathlib.Path("model/artifacts"), "folder of NAME/VERSION/model.pt")
    models_poll_seconds: float = _flag(
        5.0, "how often that folder is looked at for new versions; 0: on SIGHUP alone"
    )
    on_new_version: str = _flag(
        "keep",
        "keep: sessions stay on their version until they end; migrate: they go on on the new one, if its"
        " state is laid out alike",
        ("keep", "migrate"),
    )
    store: str = _flag(
        "memory:", "where sessions survive: sqlite:PATH, redis://HOST:PORT/NUMBER, or memory: for nowhere"
    )
    checkpoint_interval_seconds: float = _flag(
        1.0, "how often sessions that changed are written to the store, off the steps' path"
    )
    max_changed_sessions: int = _flag(10_000, "sessions that may change before they are written earlier")
    device: str = _flag(
        "auto", "where the models run; auto takes CUDA when it is there", ("auto", "cpu", "cuda")
    )
    workers: int = _flag(1, "server processes on the port, which share the sessions")
    front: str = _flag(
        "auto", "the server technology; auto takes envoy where it can be had", ("auto", "grpcio", "envoy")
    )
    threads: int = _flag(1, "CPU threads of one cell call; from 3 on a prediction's last bits may change")
    cpu_scheduling: str = _flag(
        "batch",
        "batch: up to twice the steps a core; normal: lower latency where other programs keep all cores busy",
        ("batch", "normal"),
    )
    max_resident_sessions: int = _flag(
        100_000, "sessions in memory, per model; with a store more may be open"
    )
    session_ttl_seconds: float = _flag(3600.0, "idle seconds after which a session expires; 0: never")
    replies_kept: int = _flag(8, "replies kept per session for repeated steps")
    max_queue_steps: int = _flag(262_144, "steps waiting, per model; more are refused as OVERLOADED")
    max_batch_steps: int = _flag(1024, "steps in one cell call; long inputs have a call of their own")
    max_piece_steps: int = _flag(64, "time steps of a long input run before single steps get in between")
    max_hold_seconds: float = _flag(
        0.003, "how long a few steps may be held for others to join, where that is seen to pay; 0: never"
    )
    max_message_steps: int = _flag(65_536, "steps in one message")
    max_message_bytes: int = _flag(4 << 20, "bytes in one message")
    max_metadata_bytes: int = _flag(16 << 10, "bytes in the headers of one request")
    max_horizon_steps: int = _flag(1000, "steps ahead in one forecast")
    max_stream_sessions: int = _flag(100_000, "sessions that one stream may bind to numbers")
    max_stream_messages: int = _flag(256, "messages of one stream unanswered before it is read no further")
    drain_timeout_seconds: float = _flag(20.0, "seconds for steps in flight after SIGTERM")
    reflection: bool = _flag(True, "offer server reflection, for grpcurl and its like")
    channelz: bool = _flag(False, "offer channelz, which tells of connections and calls; on the grpcio front")
    cors_origins: str = _flag(
        "", "origins whose pages may call from a browser, by commas, or *; on the envoy front"
    )
    tls_cert: str = _flag("", "PEM file of the server's certificate chain; with --tls-key")
    tls_key: str = _flag("", "PEM file of the server's private key")
    tls_client_ca: str = _flag("", "PEM file of the authority that clients' certificates must come from")

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
        if self.channelz and self.front == "envoy":
            raise _wrong(
                "channelz", "is of --front grpcio; Envoy tells of its connections in its own statistics"
            )
        self._check_origins()

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
    """Returns the settings that a command line and an environment give.

    Raises:
        ConfigError: a value is wrong; the message names its flag or variable.
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
    return Config(**values)


def to_environment(settings: Config) -> dict[str, str]:
    """Returns the variables that give these settings to another process."""
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
        parser.add_argument(_flag_of(field.name), dest=field.name, metavar=_metavar(field), help=text)
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
    return "|".join(choices) if choices else field.name.rsplit("_", 1)[-1].upper()
