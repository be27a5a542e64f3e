"""Measures all cases in rounds, so that a busy moment of the machine meets many cases and not one."""

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
    ENVOY_CASES,
    HIDDEN_SIZE,
    NUM_INPUTS,
    START,
    Case,
)
from bench.figures import Figures, Round
from bench.loads import Lengths, load
from bench.processes import Cores, Server, json_of, output_of, running
from bench.servers import SERVERS, SERVICE, Kind
from service.fronts.envoy import launch

ShowProgress = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often to measure. `num_resident`: sessions in the engine alone, in the first round."""

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
    """All that was measured: the rounds, and the GPU's figures, or {"skipped": REASON} without a GPU.

    `no_envoy`: why the cases of the envoy front were left out, "" if they were not.
    """

    rounds: list[Round]
    cuda: dict[str, Any]
    no_envoy: str = ""

    @property
    def left_out(self) -> frozenset[str]:
        """The cases that this machine cannot run."""
        return ENVOY_CASES if self.no_envoy else frozenset()


def measure(plan: Plan, cores: Cores, show_progress: ShowProgress) -> Measured:
    """Measures everything.

    Raises:
        BenchError: a server or a generator failed.
    """
    no_envoy = launch.why_unavailable()
    with _artifact() as artifact:
        with _servers(artifact, cores, has_envoy=not no_envoy) as servers:
            bench = _Bench(
                plan=plan, cores=cores, artifact=artifact, servers=servers, show_progress=show_progress
            )
            rounds = [bench.round(number) for number in range(1, plan.num_rounds + 1)]
        show_progress("CUDA")
        cuda = json_of("bench.cuda", str(artifact), str(plan.cuda_seconds))
        return Measured(rounds, cuda, no_envoy)


@contextlib.contextmanager
def _artifact() -> Iterator[pathlib.Path]:
    """Exports the reference artifact and yields its path: FOLDER/models/reference/1/model.pt."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = pathlib.Path(folder) / "models" / "reference" / "1" / "model.pt"
        artifact.parent.mkdir(parents=True)
        sizes = ("--inputs", str(NUM_INPUTS), "--hidden", str(HIDDEN_SIZE), "--layers", "1")
        output_of("model", "export", "--reference", *sizes, "--out", str(artifact))
        yield artifact


@contextlib.contextmanager
def _servers(artifact: pathlib.Path, cores: Cores, *, has_envoy: bool) -> Iterator[Mapping[str, Server]]:
    """Runs all servers that this machine can run, and yields them by name."""
    with contextlib.ExitStack() as stack:
        kinds = {name: kind for name, kind in SERVERS.items() if has_envoy or not kind.needs_envoy}
        yield {name: stack.enter_context(_run(kind, artifact, cores)) for name, kind in kinds.items()}


def _run(kind: Kind, artifact: pathlib.Path, cores: Cores) -> contextlib.AbstractContextManager[Server]:
    folder = artifact.parents[3]  # folder/models/NAME/VERSION/model.pt
    return running(kind.module, *kind.arguments(folder), cores=cores.server)


class _Bench:
    """Measures a round at a time, over all cases."""

    def __init__(
        self,
        *,
        plan: Plan,
        cores: Cores,
        artifact: pathlib.Path,
        servers: Mapping[str, Server],
        show_progress: ShowProgress,
    ) -> None:
        self._plan = plan
        self._cores = cores
        self._artifact = artifact
        self._servers = servers
        self._show_progress = show_progress

    def round(self, number: int) -> Round:
        """Measures a round and returns its figures, by case."""
        of = f"round {number} of {self._plan.num_rounds}"
        found: dict[str, Figures] = {}
        for case in CASES:
            if case.server not in self._servers or 0 < case.max_rounds < number:
                continue
            self._show_progress(f"{of}: {case.label}")
            found[case.name] = self._load(case, found)
            if case.name == CELL_AFTER:
                self._show_progress(f"{of}: the cell alone")
                found |= self._module("bench.cell", self._plan.cell_seconds)
        self._show_progress(f"{of}: the engine in process")
        num_resident = self._plan.num_resident if number == 1 else 0
        found |= self._module("bench.engine", self._plan.engine_seconds, str(num_resident))
        self._show_progress(f"{of}: start to ready")
        return found | {START: self._start()}

    def _load(self, case: Case, found: Round) -> Figures:
        peak = found[case.rate_of]["steps_per_second"] if case.rate_of else None
        rate = case.rate_share * peak if peak is not None else 0.0
        server = self._servers[case.server]
        return load(case, rate, server, lengths=self._plan.lengths, cores=self._cores)

    def _module(self, name: str, seconds: float, *more: str) -> dict[str, Figures]:
        """Runs a module that measures without a server, on the server's core, and returns its figures."""
        return json_of(name, str(self._artifact), str(seconds), *more, cores=self._cores.server)

    def _start(self) -> Figures:
        """Starts a server and returns the time until it says that it serves."""
        begun = time.perf_counter()
        with _run(SERVERS[SERVICE], self._artifact, self._cores):
            return {"start_seconds": time.perf_counter() - begun}
