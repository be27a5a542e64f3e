"""The engine alone, in process and without gRPC: steps by batch size, and the memory of resident sessions.

`python -m bench.engine ARTIFACT SECONDS NUM_SESSIONS` prints a JSON object: the latency and rate of batches
of single steps; and with NUM_SESSIONS sessions open at once (0: not measured) their memory and their rate.
"""

import json
import pathlib
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import torch

from bench.cases import CELL_BATCHES, NUM_INPUTS
from service.config import Config
from service.engine.engine import Engine
from service.engine.progress import TIME_ABSENT
from service.engine.work import INDEX_NEXT, Step
from service.processes import tuning
from service.runtime import artifact
from service.runtime.runner import Runner
from service.telemetry.metrics import Metrics

_WARM_UP_STEPS = 30
_SWEEP_BATCH = 1024


class _Loop:
    """An event loop with nothing but the engine's calls: they run at once, none is delayed."""

    def __init__(self) -> None:
        self._due: deque[Callable[[], None]] = deque()

    def call_soon(self, function: Callable[[], None]) -> None:
        """Adds a function for the next `run`."""
        self._due.append(function)

    def call_later(self, delay: float, function: Callable[[], None]) -> None:
        """Is never called: the engine's settings delay no step."""
        raise NotImplementedError

    def run(self) -> None:
        """Runs the added functions, and those that they add."""
        while self._due:
            self._due.popleft()()


class Bench:
    """An engine whose iterations the benchmark runs itself, with sessions that all step at once."""

    def __init__(self, model: artifact.Artifact, capacity: int) -> None:
        self._loop = _Loop()
        settings = Config(max_resident_sessions=capacity, max_hold_seconds=0)
        runner = Runner(model, capacity)
        runner.warm_up(min(settings.max_batch_steps, capacity), settings.max_piece_steps)
        metrics = Metrics().of_model(model.name, model.version)
        self.engine = Engine(runner, settings, metrics, loop=self._loop, clock=time.monotonic_ns)
        self.state_bytes = 4 * model.manifest.state_size
        self._x = np.random.default_rng(0).random((_SWEEP_BATCH, NUM_INPUTS), np.float32)
        self._num_done = 0

    def open(self, count: int) -> list[int]:
        """Opens sessions, whose ids have a usual length, and returns their slots."""
        first = len(self.engine.sessions)
        return [
            self.engine.residents.open(f"\0sensor-{number:012d}") for number in range(first, first + count)
        ]

    def step(self, slots: list[int]) -> None:
        """Steps every session once in one batch, and returns after the last answer."""
        engine = self.engine
        for at, slot in enumerate(slots):
            generation = int(engine.sessions.generation[slot])
            x = self._x[at].tobytes()
            engine.submit(Step(slot, generation, x, TIME_ABSENT, INDEX_NEXT, engine.now(), self._count))
        self._loop.run()

    def _count(self, step: Step) -> None:
        if step.error is not None:
            raise step.error
        self._num_done += 1


def latencies(model: artifact.Artifact, batch: int, seconds: float) -> dict[str, float]:
    """Repeats a batch of single steps for some seconds and returns its figures."""
    bench = Bench(model, 4096)
    slots = bench.open(batch)
    for _ in range(_WARM_UP_STEPS):
        bench.step(slots)
    taken: list[float] = []
    begun, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < seconds:
        at = time.perf_counter()
        bench.step(slots)
        taken.append(time.perf_counter() - at)
    cpu = time.process_time() - cpu
    steps = len(taken) * batch
    return {
        "steps_per_second": steps / sum(taken),
        "cpu_us_per_step": cpu / steps * 1e6,
        "p50_seconds": statistics.median(taken),
        "p99_seconds": float(np.percentile(taken, 99)),
    }


def residents(model: artifact.Artifact, count: int) -> dict[str, float]:
    """Opens `count` sessions, steps each once, and returns their memory and their rate."""
    bench = Bench(model, count)
    bench.step(bench.open(1))  # so that the costs of a first call are not measured
    before, begun = _status_bytes("VmRSS"), time.perf_counter()
    slots = bench.open(count - 1)
    opened = time.perf_counter() - begun
    begun = time.perf_counter()
    for at in range(0, len(slots), _SWEEP_BATCH):
        bench.step(slots[at : at + _SWEEP_BATCH])
    swept = time.perf_counter() - begun
    each = (_status_bytes("VmRSS") - before) / len(slots)
    return {
        "num_sessions": count,
        "bytes_per_session": each - bench.state_bytes,
        "open_us": opened / len(slots) * 1e6,
        "steps_per_second": len(slots) / swept,
        "peak_memory_bytes": _status_bytes("VmHWM"),
    }


def _status_bytes(key: str) -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{key}:"))


def main() -> None:
    """Measures every batch size, then the resident sessions."""
    torch.set_num_threads(1)
    tuning.keep_freed_memory()
    path, seconds, count = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    model = artifact.load("reference", "1", path, torch.device("cpu"))
    found = {f"engine_{batch}": latencies(model, batch, seconds) for batch in CELL_BATCHES}
    if count:
        found["resident"] = residents(model, count)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
