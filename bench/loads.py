"""Measures one case: runs its load against its server, and picks the figures that the benchmark uses.

Knows neither the other cases nor their order.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from bench.background import loading
from bench.cases import LOADTEST, Case
from bench.errors import BenchError
from bench.figures import Figures
from bench.processes import Cores, Server, json_of
from loadtest.options import Options

_BOUND_SECONDS = 60.0  # for a case that is measured by count
_BACKGROUND_SECONDS = 3600.0  # longer than any measurement


@dataclasses.dataclass(frozen=True, slots=True)
class Lengths:
    """How long a load warms up and is measured. `scale`: a factor for cases that set their own length."""

    seconds: float
    warm_up_seconds: float
    scale: float = 1.0

    def window(self, case: Case) -> list[str]:
        """Returns the measured window of a case as options of loadtest."""
        if case.num_steps:
            return ["--max-steps", str(case.num_steps), "--seconds", str(_BOUND_SECONDS), "--warm-up", "0"]
        seconds = case.seconds * self.scale or self.seconds
        return ["--seconds", str(seconds), "--warm-up", str(self.warm_up_seconds)]


def load(case: Case, rate: float, server: Server, lengths: Lengths, cores: Cores) -> Figures:
    """Measures a case and returns its figures. `rate`: steps a second if it follows from another case, or 0.

    Raises:
        BenchError: the load failed.
    """
    server.reset_peak_memory()
    source = ["--metrics", server.metrics] if case.background else ["--server-pid", str(server.pid)]
    target = ["--target", server.listen, *source, "--json", "-"]
    num_processes = min(cores.num_generators, case.streams) if case.module == LOADTEST else 1
    processes = ["--processes", str(num_processes)]
    options = [*target, *processes, *lengths.window(case), *case.arguments(rate)]
    with _background(case, server, cores):
        result = json_of(case.module, *options, cores=cores.generators, statuses=(0, 1))
    check(case, result)
    return figures_of(result, server.peak_memory_bytes())


def _background(case: Case, server: Server, cores: Cores) -> contextlib.AbstractContextManager[None]:
    if case.background is None:
        return contextlib.nullcontext()
    options = Options(
        target=server.listen, mode=case.background.mode, streams=case.background.streams,
        frame_steps=case.background.frame_steps, seconds=_BACKGROUND_SECONDS, warm_up=0.0,
    )  # fmt: skip
    return loading(options, cores.generators)


def check(case: Case, result: dict[str, Any]) -> None:
    """Checks that a load was answered.

    Raises:
        BenchError: no step was answered, or messages failed. Refusals are no failure of a case that may be
            refused.
    """
    errors: Mapping[str, int] = result["errors"]
    failed = {reason: count for reason, count in errors.items() if reason != "OVERLOADED"}
    if failed or (errors and not case.may_refuse):
        raise BenchError(f"{case.label}: messages failed: {dict(errors)}")
    if not result["steps"]:
        raise BenchError(f"{case.label}: no step was answered in the measured window")


def figures_of(result: dict[str, Any], peak_memory_bytes: int | None) -> Figures:
    """Returns the figures that the benchmark uses of a load test's JSON."""
    latency, server = result["latency_seconds"], result["server"]
    return {
        "steps_per_second": result["steps_per_second"],
        "asked_steps_per_second": result["options"]["rate"] or None,
        "sent_steps_per_second": result["sent_steps_per_second"],
        "p50_seconds": latency["p50"],
        "p99_seconds": latency["p99"],
        "p99_9_seconds": latency["p99.9"],
        "cpu_us_per_step": server["cpu_us_per_step"],
        "steps_per_core_second": 1e6 / server["cpu_us_per_step"] if server["cpu_us_per_step"] else None,
        "server_core_share": server["cpu_seconds"] / result["seconds"],
        "server_steps_per_second": server["num_steps"] / result["seconds"],
        "peak_memory_bytes": peak_memory_bytes,
        "generator_core_share": result["generator_core_share"],
        "num_refused": float(result["errors"].get("OVERLOADED", 0)),
    }
