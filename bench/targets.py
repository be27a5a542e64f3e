"""The targets of the benchmark, and whether figures meet them. Does not know how figures are measured.

Most targets are ratios to a floor that was measured in the same round, so they hold on any machine.
"""

import dataclasses
import math

from bench.cases import RESIDENT, START

_TRITON_STEPS_PER_SECOND = 3300.0  # per core, on streams
_TRITON_CALLS_PER_SECOND = 3700.0  # per core, unary
_TRITON_P99_MS = 38


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
    """One case's figure over another's, both of the same round."""

    figure: str
    over: str
    under: str

    @property
    def cases(self) -> set[str]:
        """The cases whose figures it needs."""
        return {self.over, self.under}


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """One case's figure, times a factor for the unit."""

    figure: str
    case: str
    factor: float = 1.0

    @property
    def cases(self) -> set[str]:
        """The case whose figure it needs."""
        return {self.case}


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A figure with its goal, and a stretch goal beyond it. `at_least`: larger figures are better."""

    name: str
    label: str
    source: Ratio | Value
    _: dataclasses.KW_ONLY
    goal: float
    stretch: float | None = None
    unit: str = ""
    at_least: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a target is met. `missed_by`: in percent of the goal, None if nothing was measured."""

    is_met: bool
    is_stretch: bool = False
    missed_by: float | None = 0.0

    def __str__(self) -> str:
        if self.missed_by is None:
            return "not measured"
        if not self.is_met:
            return f"missed by {self.missed_by:,.0f} %" if self.missed_by >= 1 else "missed by under 1 %"
        return "stretch" if self.is_stretch else "met"


_CPU, _RATE, _P50, _P99 = "cpu_us_per_step", "steps_per_second", "p50_seconds", "p99_seconds"
# Steps per core second are compared by CPU costs, as the inverse ratio: other processes on the core would
# shift the rates.
TARGETS = (
    Target(
        "stream_to_echo",
        "stream: CPU a step / the echo's",
        Ratio(_CPU, "stream_64", "echo_stream_64"),
        goal=1.35,
        stretch=1.15,
    ),
    Target(
        "unary_to_echo",
        "unary: CPU a step / the echo's",
        Ratio(_CPU, "unary_64", "echo_unary_64"),
        goal=1.4,
        stretch=1.15,
    ),
    Target(
        "half_to_echo",
        "p99 at half the peak load / the echo's",
        Ratio(_P99, "half_64", "echo_half_64"),
        goal=2.0,
        stretch=1.3,
    ),
    Target(
        "frame_to_cell",
        "frames of 256: steps per core s / the cell's",
        Ratio(_CPU, "cell_256", "frame_256"),
        goal=0.50,
        stretch=0.70,
        at_least=True,
    ),
    Target(
        "step_to_sgemm",
        "scripted step, batch 256: time / its sgemm",
        Ratio(_CPU, "step_256", "sgemm_256"),
        goal=1.7,
        stretch=1.3,
    ),
    Target(
        "engine_1",
        "engine in process, one step: p50",
        Value(_P50, "engine_1", 1e6),
        goal=150,
        stretch=80,
        unit="µs",
    ),
    Target(
        "resident_bytes",
        "memory a session, without its state row",
        Value("bytes_per_session", RESIDENT),
        goal=400,
        stretch=100,
        unit="B",
    ),
    Target(
        "start",
        "start to ready, model warmed",
        Value("start_seconds", START),
        goal=4.0,
        stretch=2.5,
        unit="s",
    ),
    Target(
        "prime_to_stream",
        "priming: rate / one step a message",
        Ratio(_RATE, "prime_10000", "stream_1"),
        goal=20,
        stretch=60,
        at_least=True,
    ),
    Target("primed_to_idle", "p99 while 8 clients prime / idle", Ratio(_P99, "primed_4", "idle_4"), goal=5.0),
    Target(
        "overload_to_peak",
        "5 times the peak offered: goodput / peak",
        Ratio(_RATE, "overload", "frame_256"),
        goal=0.90,
        at_least=True,
    ),
    Target(
        "frame_to_triton",
        "frames of 1,024: steps per core s / Triton's [1]",
        Value("steps_per_core_second", "frame_1024", 1 / _TRITON_STEPS_PER_SECOND),
        goal=20,
        at_least=True,
    ),
    Target(
        "envoy_stream_to_echo",
        "envoy stream: CPU a step / its echo's",
        Ratio(_CPU, "envoy_stream_64", "envoy_echo_stream_64"),
        goal=1.8,
        stretch=1.4,
    ),
    Target(
        "envoy_unary_to_echo",
        "envoy unary: CPU a step / its echo's",
        Ratio(_CPU, "envoy_unary_64", "envoy_echo_unary_64"),
        goal=1.8,
        stretch=1.4,
    ),
    Target(
        "infer_to_stream",
        "Open Inference Protocol: CPU a step / ours",
        Ratio(_CPU, "infer_64", "stream_64"),
        goal=1.25,
        stretch=1.1,
    ),
    Target(
        "envoy_infer_to_stream",
        "the same on envoy",
        Ratio(_CPU, "envoy_infer_64", "envoy_stream_64"),
        goal=1.25,
        stretch=1.1,
    ),
    Target(
        "envoy_64_to_grpcio_echo",
        "envoy 64 streams: steps per core s / grpc.aio echo",
        Ratio(_CPU, "echo_stream_64", "envoy_stream_64"),
        goal=2,
        stretch=3,
        at_least=True,
    ),
    Target(
        "envoy_256_to_grpcio_echo",
        "envoy 256 streams: steps per core s / grpc.aio echo",
        Ratio(_CPU, "echo_stream_256", "envoy_stream_256"),
        goal=2,
        stretch=3,
        at_least=True,
    ),
    Target(
        "envoy_unary_to_grpcio_echo",
        "envoy unary: steps per core s / grpc.aio echo",
        Ratio(_CPU, "echo_unary_64", "envoy_unary_64"),
        goal=2,
        stretch=4,
        at_least=True,
    ),
    Target(
        "envoy_p99_to_grpcio",
        "envoy 256 streams, half load: p99 / grpcio's",
        Ratio(_P99, "envoy_half_256", "half_256"),
        goal=0.3,
        stretch=0.1,
    ),
    Target(
        "envoy_frame_to_grpcio",
        "envoy frames of 256: steps per core s / grpcio's",
        Ratio(_CPU, "frame_256", "envoy_frame_256"),
        goal=1,
        stretch=1.3,
        at_least=True,
    ),
    Target(
        "stored_to_plain",
        "with a store, 64 streams: CPU a step / without",
        Ratio(_CPU, "stored_stream_64", "stream_64"),
        goal=1.1,
    ),
    Target(
        "stored_frame_to_plain",
        "with a store, frames of 256: CPU a step / without",
        Ratio(_CPU, "stored_frame_256", "frame_256"),
        goal=1.2,
    ),
    Target(
        "envoy_64_to_triton",
        "envoy 64 streams: steps per core s / Triton's [1]",
        Value("steps_per_core_second", "envoy_stream_64", 1 / _TRITON_STEPS_PER_SECOND),
        goal=4,
        stretch=6,
        at_least=True,
    ),
    Target(
        "envoy_unary_to_triton",
        "envoy unary: steps per core s / Triton's [1]",
        Value("steps_per_core_second", "envoy_unary_64", 1 / _TRITON_CALLS_PER_SECOND),
        goal=1.5,
        stretch=2.5,
        at_least=True,
    ),
    Target(
        "envoy_p99_to_triton",
        "envoy 64 streams: p99, Triton's as goal [1]",
        Value(_P99, "envoy_stream_64", 1e3),
        goal=_TRITON_P99_MS,
        unit="ms",
    ),
)
TRITON_NOTE = (
    f"[1] Figures from elsewhere: {_TRITON_STEPS_PER_SECOND:,.0f} single steps per core s of this cell on 64 "
    f"streams (p99 {_TRITON_P99_MS} ms), {_TRITON_CALLS_PER_SECOND:,.0f} by\nunary calls, as published for "
    "Triton 2.51 (sequence batcher, Python backend) on another such machine."
)


def outcome(target: Target, value: float | None) -> Outcome:
    """Returns whether a figure meets its target. A figure that was not measured does not."""
    if value is None or not math.isfinite(value):
        return Outcome(is_met=False, missed_by=None)
    if not _reaches(target, value, target.goal):
        excess = 1 - value / target.goal if target.at_least else value / target.goal - 1
        return Outcome(is_met=False, missed_by=excess * 100)
    return Outcome(is_met=True, is_stretch=_reaches(target, value, target.stretch))


def strain(target: Target, value: float) -> float:
    """Returns a figure on a scale for all targets: at 1 the goal is just met, above 1 it is missed."""
    if target.at_least:
        return target.goal / value if value > 0 else math.inf
    return value / target.goal


def _reaches(target: Target, value: float, goal: float | None) -> bool:
    if goal is None:
        return False
    return value >= goal if target.at_least else value <= goal
