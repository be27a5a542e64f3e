"""The floors of the model: the scripted cell with and without moving its state rows, and its sgemm alone.

`python -m bench.cell ARTIFACT SECONDS` prints a JSON object: steps per second and CPU µs a step of each case.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.cases import CELL_BATCHES, HIDDEN_SIZE, NUM_INPUTS
from service.processes import tuning

_NUM_SLOTS = 4096
_WARM_UP_CALLS = 20  # TorchScript profiles the first calls and compiles after them
_Call = Callable[[], object]


def load(path: str) -> tuple[Any, int]:
    """Returns an artifact's script and the size of its state row."""
    files = {"manifest.json": b""}
    script = torch.jit.load(path, _extra_files=files)  # type: ignore[no-untyped-call]
    return script.eval(), int(json.loads(files["manifest.json"])["state"]["size"])


def cell_call(script: Any, state_size: int, batch: int) -> _Call:
    """Returns the call of one iteration for `batch` sessions: gathers their state rows, steps, scatters."""
    pool = torch.zeros(_NUM_SLOTS, state_size)
    slots = torch.randperm(_NUM_SLOTS)[:batch]
    x, times = torch.rand(batch, NUM_INPUTS), torch.zeros(batch, dtype=torch.int64)

    def call() -> None:
        _, state = script.step(x, times, pool.index_select(0, slots))
        pool.index_copy_(0, slots, state)

    return call


def step_call(script: Any, state_size: int, batch: int) -> _Call:
    """Returns the call of the cell's step alone, without gathering and scattering state rows."""
    state = torch.zeros(batch, state_size)
    x, times = torch.rand(batch, NUM_INPUTS), torch.zeros(batch, dtype=torch.int64)
    return lambda: script.step(x, times, state)


def sgemm_call(batch: int) -> _Call:
    """Returns the call of the cell's two products alone: x (B, F) and h (B, H) onto its gates (B, 4H)."""
    x, h = torch.rand(batch, NUM_INPUTS), torch.rand(batch, HIDDEN_SIZE)
    of_x, of_h = torch.rand(4 * HIDDEN_SIZE, NUM_INPUTS), torch.rand(4 * HIDDEN_SIZE, HIDDEN_SIZE)
    bias = torch.rand(4 * HIDDEN_SIZE)
    return lambda: torch.addmm(torch.addmm(bias, x, of_x.t()), h, of_h.t())  # (B, 4H)


def measure(call: _Call, batch: int, seconds: float) -> dict[str, float]:
    """Repeats a call over `batch` rows for some seconds and returns its figures."""
    for _ in range(_WARM_UP_CALLS):
        call()
    count = 0
    begun, cpu = time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - begun) < seconds:
        call()
        count += 1
    steps = count * batch
    return {
        "steps_per_second": steps / elapsed,
        "cpu_us_per_step": (time.process_time() - cpu) / steps * 1e6,
    }


@torch.inference_mode()
def main() -> None:
    """Measures every batch size."""
    torch.set_num_threads(1)
    tuning.keep_freed_memory()  # as the server does: otherwise the floor would include fresh pages
    script, state_size = load(sys.argv[1])
    seconds = float(sys.argv[2])
    calls = {f"cell_{batch}": (cell_call(script, state_size, batch), batch) for batch in CELL_BATCHES}
    largest = CELL_BATCHES[-1]
    calls[f"step_{largest}"] = (step_call(script, state_size, largest), largest)
    calls[f"sgemm_{largest}"] = (sgemm_call(largest), largest)
    # The largest batches first: frames of 256, which were measured just before, are compared with them.
    found = {name: measure(*calls[name], seconds) for name in reversed(calls)}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
