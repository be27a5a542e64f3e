"""The options of a load test: one frozen value, which checks itself and names an option that is wrong.

Does not know what the options do.
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from streamcell import access
from streamcell.access import Access, AccessError

from loadtest.errors import OptionError

MODES = ("stream", "unary", "frame", "prime", "forecast")
_MAX_CONNECTIONS = 8  # by default: more streams share connections, as those of a gateway do
_STREAMS_PER_CONNECTION = 8
_DEFAULT_FRAME_STEPS = {"stream": 1, "unary": 1, "frame": 256, "prime": 1000, "forecast": 1}
_DEFAULT_HORIZON_STEPS = 48
_MAX_SESSIONS = 1_000_000
_METAVARS = {
    **dict.fromkeys(("streams", "frame_steps", "connections", "max_steps", "processes"), "N"),
    **dict.fromkeys(("in_flight", "horizon"), "N"),
    **{"target": "HOST:PORT", "metrics": "HOST:PORT", "model": "NAME", "json": "FILE", "server_pid": "PID"},
    **access.METAVARS,
    **{"seconds": "SECONDS", "warm_up": "SECONDS", "rate": "STEPS_PER_S"},
}


def _option(default: Any, text: str, least: float = 0, most: float = math.inf) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "least": least, "most": most})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options. Each field's help text says what it means.

    Raises:
        OptionError: a value is out of its range, or two options do not fit together.
    """

    target: str = _option("", "HOST:PORT of the server")
    model: str = _option("", "NAME or NAME/VERSION; needed if the server has several models")
    mode: str = _option(
        "stream",
        "stream: single steps on bidirectional streams; unary: one call per step; frame: streams whose "
        "messages hold one step of each of --frame-steps sessions; prime: one call per history of "
        "--frame-steps; forecast: one call per forecast, which counts as one step whatever its --horizon",
    )
    streams: int = _option(64, "streams, or unary callers", 1, 100_000)
    in_flight: int = _option(1, "messages that each stream or caller may have outstanding", 1, 10_000)
    frame_steps: int = _option(0, "steps in a message of frame (0: 256) or prime (0: 1000)", 0, 1_000_000)
    horizon: int = _option(0, "steps ahead in a forecast (0: 48)", 0, 1_000_000)
    connections: int = _option(
        0, "connections that the streams share; 0: one per 8 streams, at most 8", 0, 10_000
    )
    seconds: float = _option(10.0, "seconds measured", 0.05, 86_400)
    warm_up: float = _option(2.0, "seconds of warm-up: the same load, not measured", 0, 3_600)
    max_steps: int = _option(0, "stop after this many steps in all, not counting the warm-up; 0: no bound")
    rate: float = _option(
        0.0,
        "open loop: the offered load in steps a second in all, sent on schedule whether or not replies have "
        "come; latency counts from the scheduled time, so it includes the wait before sending; 0: closed "
        "loop, the next message when the last is answered",
    )
    processes: int = _option(1, "generator processes, if one is not enough", 1, 256)
    metrics: str = _option("", "HOST:PORT of the server's metrics: shows its CPU time and its own latencies")
    server_pid: int = _option(
        0,
        "process of a server on this machine: reads its CPU time, and its descendants', from /proc instead",
    )
    json: str = _option("", "file for the result as JSON; - for standard output")
    tls: bool = _option(default=False, text=access.FLAGS["tls"])
    tls_ca: str = _option("", access.FLAGS["tls_ca"])
    tls_cert: str = _option("", access.FLAGS["tls_cert"])
    tls_key: str = _option("", access.FLAGS["tls_key"])
    tls_server_name: str = _option("", access.FLAGS["tls_server_name"])
    token_file: str = _option("", access.FLAGS["token_file"])
    token_in_plain_text: bool = _option(default=False, text=access.FLAGS["token_in_plain_text"])

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_range(field, getattr(self, field.name))
        if self.mode not in MODES:
            raise OptionError(f"--mode: {self.mode!r} is not one of {', '.join(MODES)}")
        _check_address("--target", self.target)
        if self.metrics:
            _check_address("--metrics", self.metrics)
        if self.metrics and self.server_pid:
            raise OptionError("--server-pid: does not go with --metrics, which has the CPU time too")
        self._check_amounts()

    def _check_amounts(self) -> None:
        if self.processes > self.streams:
            raise OptionError(f"--processes: {self.processes} of them cannot share {self.streams} streams")
        if self.frame_steps and self.mode not in ("frame", "prime"):
            raise OptionError(f"--frame-steps: goes with --mode frame or prime, not {self.mode}")
        if self.horizon and self.mode != "forecast":
            raise OptionError(f"--horizon: goes with --mode forecast, not {self.mode}")
        if self.max_steps and self.max_steps < self.steps_per_message * self.processes:
            raise OptionError(
                f"--max-steps: {self.max_steps} are less than one message of each process holds"
            )
        if self.num_sessions > _MAX_SESSIONS:
            raise OptionError(f"--streams: {self.num_sessions:,} sessions are over {_MAX_SESSIONS:,}")

    def access(self) -> Access:
        """Reads the files for TLS and the token, and returns what they hold.

        Raises:
            OptionError: a file cannot be used, or the token would go to another machine in plain text.
        """
        try:
            return access.access_of(self, target=self.target)
        except AccessError as error:
            raise OptionError(str(error)) from None

    @property
    def steps_per_message(self) -> int:
        """Steps in one message."""
        return self.frame_steps or _DEFAULT_FRAME_STEPS[self.mode]

    @property
    def horizon_steps(self) -> int:
        """Steps ahead in one forecast."""
        return self.horizon or _DEFAULT_HORIZON_STEPS

    @property
    def sessions_per_stream(self) -> int:
        """Sessions of one stream, or caller."""
        return self.steps_per_message if self.mode == "frame" else 1

    @property
    def num_sessions(self) -> int:
        """Sessions in all."""
        return self.streams * self.sessions_per_stream

    @property
    def num_connections(self) -> int:
        """Connections in all."""
        wanted = self.connections or min(_MAX_CONNECTIONS, math.ceil(self.streams / _STREAMS_PER_CONNECTION))
        return min(wanted, self.streams)

    def share(self, number: int) -> "Options":
        """Returns the share of generator process `number`, from 0. The shares add up to the whole."""
        streams = _share(self.streams, number, self.processes)
        return dataclasses.replace(
            self,
            streams=streams,
            connections=max(1, _share(self.num_connections, number, self.processes)),
            rate=self.rate * streams / self.streams,
            max_steps=_share(self.max_steps, number, self.processes),
            processes=1,
            metrics="",
            server_pid=0,
            json="",
        )


def parse(arguments: Sequence[str]) -> Options:
    """Returns the options of a command line.

    Raises:
        OptionError: a value is wrong.
        SystemExit: an option is unknown or missing, or is --help.
    """
    return Options(**vars(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description="Sends steps to a Streamcell server and shows its rate and the latency of its answers.",
        epilog="Exit status: 0, all went well; 1, messages failed or nothing was measured; 2, the test could "
        "not run; 130, interrupted. It closes the sessions that it opened, also when it is interrupted.",
        allow_abbrev=False,
    )
    for field in dataclasses.fields(Options):
        if field.type is bool:
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, action="store_true", help=field.metadata["help"])
            continue
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=field.type if isinstance(field.type, type) else str,
            required=field.name == "target",
            default=field.default,
            choices=MODES if field.name == "mode" else None,
            metavar=_METAVARS.get(field.name),
            help=field.metadata["help"] + (f" ({field.default})" if field.default else ""),
        )
    return parser


def _share(whole: int, number: int, of: int) -> int:
    return whole // of + (number < whole % of)


def _check_range(field: "dataclasses.Field[Any]", value: Any) -> None:
    least, most = field.metadata["least"], field.metadata["most"]
    if isinstance(value, int | float) and not (least <= value <= most and math.isfinite(value)):
        upper = f" and at most {most:,}" if most < math.inf else ""
        raise OptionError(f"--{field.name.replace('_', '-')}: must be at least {least:,}{upper}, not {value}")


def _check_address(option: str, text: str) -> None:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise OptionError(f"{option}: {text!r} is not HOST:PORT")
