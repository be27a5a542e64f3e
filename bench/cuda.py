"""Steps on a GPU by batch size, each beside its floor: the time to move its bytes once.

`python -m bench.cuda ARTIFACT SECONDS` prints a JSON object: the device's copy bandwidth, and the latency,
rate and floor of each batch, times in seconds. Without CUDA it prints {"skipped": REASON}.
"""

import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bench.cell import load as load_script
from service.runtime import artifact
from service.runtime.cuda_runner import runner_for
from service.runtime.runner import Runner

BATCHES = tuple(4**power for power in range(9))  # 1 to 65,536
_MAX_PIECE_STEPS = 32
_COPIED_BYTES = 1 << 28
_NUM_COPIES = 20
_LEAST_CALLS = 5


def copy_bandwidth(device: torch.device) -> float:
    """Returns the device's bandwidth while it copies: bytes read and bytes written, added up, per second."""
    source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)  # so that the costs of a first call are not measured
    _wait_for(device)
    begun = time.perf_counter()
    for _ in range(_NUM_COPIES):
        target.copy_(source)
    _wait_for(device)
    return 2 * _COPIED_BYTES * _NUM_COPIES / (time.perf_counter() - begun)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":  # the only device here whose calls return before they are done
        torch.cuda.synchronize(device)


def weight_bytes(path: str) -> int:
    """Returns the size of an artifact's weights."""
    script, _ = load_script(path)
    return sum(tensor.numel() * tensor.element_size() for tensor in script.parameters())


def floor_seconds(batch: int, state_bytes: int, weights: int, bandwidth: float) -> float:
    """Returns the time to read and write each state row once, and to read the weights once."""
    return (2 * batch * state_bytes + weights) / bandwidth


def latencies(runner: Runner, batch: int, seconds: float) -> list[float]:
    """Returns the seconds of each call over a batch, which takes and returns values in the CPU's memory."""
    random = np.random.default_rng(0)
    slots = random.permutation(batch)
    num_inputs = len(runner.artifact.manifest.inputs)
    x, times = random.random((batch, num_inputs), np.float32), np.zeros(batch, np.int64)
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < _LEAST_CALLS or time.perf_counter() - begun < seconds:
        at = time.perf_counter()
        runner.step(slots, x, times)
        taken.append(time.perf_counter() - at)
    return taken


def measure(path: str, seconds: float, device: torch.device, batches: Sequence[int]) -> dict[str, Any]:
    """Returns the figures of every batch, and the bandwidth for their floors."""
    model = artifact.load("reference", "1", pathlib.Path(path), device)
    runner = runner_for(model, max(batches))
    runner.warm_up(max(batches), _MAX_PIECE_STEPS)
    bandwidth, weights = copy_bandwidth(device), weight_bytes(path)
    state_bytes = 4 * model.manifest.state_size
    found = []
    for batch in batches:
        taken = latencies(runner, batch, seconds)
        figures = {
            "batch": batch,
            "p50_seconds": float(np.percentile(taken, 50)),
            "p99_seconds": float(np.percentile(taken, 99)),
            "steps_per_second": batch * len(taken) / sum(taken),
            "floor_seconds": floor_seconds(batch, state_bytes, weights, bandwidth),
        }
        found.append(figures)
    return {"copy_bytes_per_second": bandwidth, "batches": found}


def main() -> None:
    """Measures every batch, if there is a GPU."""
    if torch.cuda.is_available():
        device = torch.device("cuda")
        found = measure(sys.argv[1], float(sys.argv[2]), device, BATCHES)
        found["device"] = torch.cuda.get_device_name(device)
    else:
        found = {"skipped": "CUDA is not available"}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
