"""The measuring: rounds over all cases, so that a moment when the machine is busy meets many of them."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from bench.cases import CASES, CELL_LABELS, HIDDEN_SIZE, NUM_INPUTS, Case
from bench.processes import Cores, Server, json_of, output_of, running

_BOUND_SECONDS = "60"  # for a case that is measured by count
Figures = dict[str, float | None]
Round = dict[str, Figures]


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    num_rounds: int
    seconds: float
    warm_up_seconds: float
    cell_seconds: float


FULL = Plan(num_rounds=5, seconds=2.0, warm_up_seconds=0.5, cell_seconds=0.4)
QUICK = Plan(num_rounds=1, seconds=0.4, warm_up_seconds=0.2, cell_seconds=0.1)


def measure(plan: Plan, cores: Cores, tell: Callable[[str], None]) -> list[Round]:
    """Returns the figures of each round, by case.

    Raises:
        BenchError: a server or a generator failed.
    """
    with _servers(cores) as (service, echo, artifact):
        rounds = []
        for number in range(1, plan.num_rounds + 1):
            found: Round = {}
            for case in CASES:
                tell(f"round {number} of {plan.num_rounds}: {case.label}")
                found[case.name] = _load(case, echo if case.is_floor else service, plan, cores)
            tell(f"round {number} of {plan.num_rounds}: {', '.join(CELL_LABELS.values())}")
            found |= json_of("bench.cell", str(artifact), str(plan.cell_seconds), core=cores.server)
            rounds.append(found)
        return rounds


@contextlib.contextmanager
def _servers(cores: Cores) -> Iterator[tuple[Server, Server, pathlib.Path]]:
    """Runs the service on the reference artifact, and the echo; yields both and the artifact."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = pathlib.Path(folder) / "reference" / "1" / "model.pt"
        artifact.parent.mkdir(parents=True)
        sizes = ("--inputs", str(NUM_INPUTS), "--hidden", str(HIDDEN_SIZE), "--layers", "1")
        output_of("model", "export", "--reference", *sizes, "--out", str(artifact))
        free = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--device", "cpu")
        with (
            running("service", *free, "--models", folder, core=cores.server) as service,
            running("bench.echo", core=cores.server) as echo,
        ):
            yield service, echo, artifact


def _load(case: Case, server: Server, plan: Plan, cores: Cores) -> Figures:
    server.forget_peak_memory()
    window = ["--seconds", str(plan.seconds), "--warm-up", str(plan.warm_up_seconds)]
    if case.num_steps:
        window = ["--max-steps", str(case.num_steps), "--seconds", _BOUND_SECONDS, "--warm-up", "0"]
    where = ("--target", server.listen, "--server-pid", str(server.pid), "--json", "-")
    result = json_of("loadtest", *where, *window, *case.arguments(), core=cores.generator)
    return figures_of(result, server.peak_memory_bytes())


def figures_of(result: dict[str, Any], peak_memory_bytes: int | None) -> Figures:
    """Returns the figures of a load test's JSON that the benchmark keeps."""
    return {
        "steps_per_second": result["steps_per_second"],
        "p50_seconds": result["latency_seconds"]["p50"],
        "p99_seconds": result["latency_seconds"]["p99"],
        "cpu_us_per_step": result["server"]["cpu_us_per_step"],
        "peak_memory_bytes": peak_memory_bytes,
        "generator_core_share": result["generator_core_share"],
    }
