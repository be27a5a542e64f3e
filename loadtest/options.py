"""The options of a load test: one frozen value that checks itself and names the option at fault.

Does not know what the options do.
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from loadtest.errors import OptionError

MODES = ("stream", "unary", "frame", "prime", "forecast")
_MAX_CONNECTIONS = 8  # unless asked for: some more streams share a connection, as a gateway's would
_STREAMS_PER_CONNECTION = 8
_DEFAULT_FRAME_STEPS = {"stream": 1, "unary": 1, "frame": 256, "prime": 1000, "forecast": 1}
_DEFAULT_HORIZON_STEPS = 48
_MAX_SESSIONS = 1_000_000
_METAVARS = {
    **dict.fromkeys(("streams", "frame_steps", "connections", "max_steps", "processes"), "N"),
    **dict.fromkeys(("in_flight", "horizon"), "N"),
    **{"target": "HOST:PORT", "metrics": "HOST:PORT", "model": "NAME", "json": "FILE", "server_pid": "PID"},
    **{"seconds": "SECONDS", "warm_up": "SECONDS", "rate": "STEPS_PER_S"},
}


def _option(default: Any, text: str, least: float = 0, most: float = math.inf) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "least": least, "most": most})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options; see each one's text.

    Raises:
        OptionError: a value is out of its range, or does not go with another.
    """

    target: str = _option("", "HOST:PORT of the server")
    model: str = _option("", "NAME or NAME/VERSION; needed where the server has several")
    mode: str = _option(
        "stream",
        "stream: single steps on bidirectional streams; unary: a call per step; frame: streams of messages "
        "that hold one step of each of --frame-steps sessions; prime: a call per history of --frame-steps; "
        "forecast: a call per forecast, which counts as one step whatever its --horizon",
    )
    streams: int = _option(64, "streams, or callers", 1, 100_000)
    in_flight: int = _option(1, "messages that each of them may have outstanding", 1, 10_000)
    frame_steps: int = _option(0, "steps in a message of frame (0: 256) or prime (0: 1000)", 0, 1_000_000)
    horizon: int = _option(0, "steps ahead in a forecast (0: 48)", 0, 1_000_000)
    connections: int = _option(0, "connections they share; 0: one per 8, and 8 at most", 0, 10_000)
    seconds: float = _option(10.0, "seconds measured", 0.05, 86_400)
    warm_up: float = _option(2.0, "seconds of the same load before that", 0, 3_600)
    max_steps: int = _option(0, "stop after so many steps in all, the warm-up's aside; 0: no bound")
    rate: float = _option(
        0.0,
        "steps a second in all, sent by a plan and not when the last reply is there; latency then counts "
        "from the planned time, so that waiting to be sent is part of it; 0: as fast as replies come",
    )
    processes: int = _option(1, "generator processes, where one is not enough", 1, 256)
    metrics: str = _option("", "HOST:PORT of the server's metrics: shows its CPU and its own latencies")
    server_pid: int = _option(
        0, "process of a server on this machine: its CPU from /proc instead, and that of those it started"
    )
    json: str = _option("", "file for the result; - for standard output")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_range(field, getattr(self, field.name))
        if self.mode not in MODES:
            raise OptionError(f"--mode: {self.mode!r} is not one of {', '.join(MODES)}")
        _check_address("--target", self.target)
        if self.metrics:
            _check_address("--metrics", self.metrics)
        if self.metrics and self.server_pid:
            raise OptionError("--server-pid: does not go with --metrics, which tells the CPU too")
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

    @property
    def steps_per_message(self) -> int:
        """Steps that one message holds."""
        return self.frame_steps or _DEFAULT_FRAME_STEPS[self.mode]

    @property
    def horizon_steps(self) -> int:
        """Steps ahead that one forecast holds."""
        return self.horizon or _DEFAULT_HORIZON_STEPS

    @property
    def sessions_per_stream(self) -> int:
        """Sessions that one stream, or caller, steps."""
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
        """Returns the part of generator process `number`, 0-based; the parts add up to the whole."""
        streams = _part(self.streams, number, self.processes)
        return dataclasses.replace(
            self,
            streams=streams,
            connections=max(1, _part(self.num_connections, number, self.processes)),
            rate=self.rate * streams / self.streams,
            max_steps=_part(self.max_steps, number, self.processes),
            processes=1,
            metrics="",
            server_pid=0,
            json="",
        )


def parse(arguments: Sequence[str]) -> Options:
    """Returns the options of a command line.

    Raises:
        OptionError: a value is wrong.
        SystemExit: an option is unknown or missing, or help was asked for.
    """
    return Options(**vars(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description="Sends steps to a Streamcell server and shows how many it takes and how long each takes.",
        epilog="Exit status: 0, all went well; 1, steps failed or nothing was measured; 2, it could not run; "
        "130, interrupted. Sessions that it opened are closed again, also when it is interrupted.",
        allow_abbrev=False,
    )
    for field in dataclasses.fields(Options):
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


def _part(whole: int, number: int, of: int) -> int:
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
