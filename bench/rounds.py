"""The measuring: rounds over all cases, so that a moment when the machine is busy meets many of them."""

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench.cases import (
    CASES,
    CELL_AFTER,
    ECHO,
    HIDDEN_SIZE,
    NUM_INPUTS,
    SERVICE,
    SMALL_QUEUE,
    SMALL_QUEUE_STEPS,
    START,
    Case,
)
from bench.figures import Figures, Round
from bench.loads import Lengths, load
from bench.processes import Cores, Server, json_of, output_of, running

Tell = Callable[[str], None]
_FREE = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--device", "cpu")


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often; `num_resident`: sessions in the engine by itself, in the first round."""

    num_rounds: int
    lengths: Lengths
    cell_seconds: float
    engine_seconds: float
    num_resident: int
    cuda_seconds: float = 0.5


FULL = Plan(5, Lengths(2.0, 0.4), cell_seconds=0.4, engine_seconds=0.4, num_resident=1_000_000)
QUICK = Plan(1, Lengths(0.4, 0.2, 0.4), cell_seconds=0.1, engine_seconds=0.1, num_resident=100_000)


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """All that was measured: the rounds, and what the GPU does; {"skipped": why} where there is none."""

    rounds: list[Round]
    cuda: dict[str, Any]


def measure(plan: Plan, cores: Cores, tell: Tell) -> Measured:
    """Measures everything.

    Raises:
        BenchError: a server or a generator failed.
    """
    with _artifact() as artifact:
        with _servers(artifact, cores) as servers:
            bench = _Bench(plan, cores, artifact, servers, tell)
            rounds = [bench.round(number) for number in range(1, plan.num_rounds + 1)]
        tell("CUDA")
        return Measured(rounds, json_of("bench.cuda", str(artifact), str(plan.cuda_seconds)))


@contextlib.contextmanager
def _artifact() -> Iterator[pathlib.Path]:
    """Yields the reference artifact, in a folder that can be served."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = pathlib.Path(folder) / "reference" / "1" / "model.pt"
        artifact.parent.mkdir(parents=True)
        sizes = ("--inputs", str(NUM_INPUTS), "--hidden", str(HIDDEN_SIZE), "--layers", "1")
        output_of("model", "export", "--reference", *sizes, "--out", str(artifact))
        yield artifact


@contextlib.contextmanager
def _servers(artifact: pathlib.Path, cores: Cores) -> Iterator[Mapping[str, Server]]:
    """Runs the service, the echo, and a service with a small queue: those without load cost nothing."""
    small = ("--max-queue-steps", str(SMALL_QUEUE_STEPS))
    with (
        _service(artifact, cores) as service,
        running("bench.echo", cores=cores.server) as echo,
        _service(artifact, cores, *small) as small_queue,
    ):
        yield {SERVICE: service, ECHO: echo, SMALL_QUEUE: small_queue}


def _service(
    artifact: pathlib.Path, cores: Cores, *options: str
) -> contextlib.AbstractContextManager[Server]:
    models = ("--models", str(artifact.parents[2]))
    return running("service", *_FREE, *models, *options, cores=cores.server)


class _Bench:
    """Rounds over all cases."""

    def __init__(
        self, plan: Plan, cores: Cores, artifact: pathlib.Path, servers: Mapping[str, Server], tell: Tell
    ) -> None:
        self._plan = plan
        self._cores = cores
        self._artifact = artifact
        self._servers = servers
        self._tell = tell

    def round(self, number: int) -> Round:
        """Returns the figures of a round, by case."""
        of = f"round {number} of {self._plan.num_rounds}"
        found: dict[str, Figures] = {}
        for case in CASES:
            if case.max_rounds and number > case.max_rounds:
                continue
            self._tell(f"{of}: {case.label}")
            found[case.name] = self._load(case, found)
            if case.name == CELL_AFTER:
                self._tell(f"{of}: the cell alone")
                found |= self._module("bench.cell", self._plan.cell_seconds)
        self._tell(f"{of}: the engine in process")
        num_resident = self._plan.num_resident if number == 1 else 0
        found |= self._module("bench.engine", self._plan.engine_seconds, str(num_resident))
        self._tell(f"{of}: start to ready")
        return found | {START: self._start()}

    def _load(self, case: Case, found: Round) -> Figures:
        peak = found[case.rate_of]["steps_per_second"] if case.rate_of else None
        rate = case.share_of * peak if peak is not None else 0.0
        return load(case, rate, self._servers[case.on], self._plan.lengths, self._cores)

    def _module(self, name: str, seconds: float, *more: str) -> dict[str, Figures]:
        """Returns what a module measures by itself, on the server's core."""
        return json_of(name, str(self._artifact), str(seconds), *more, cores=self._cores.server)

    def _start(self) -> Figures:
        """Returns the time from starting a server to its word that it serves."""
        begun = time.perf_counter()
        with _service(self._artifact, self._cores):
            return {"start_seconds": time.perf_counter() - begun}
