"""Small scripted models with exact arithmetic, their artifacts, and one session folded by itself."""

import dataclasses
import functools
import json
import pathlib
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from service.runtime import artifact
from service.runtime.artifact import Artifact

CPU = torch.device("cpu")
INTERVAL_NS = 1_000_000_000
HUGE = 3e38  # as x0 twice in a row, overflows the level of the Recurrence
FAULT = 31337.0  # an input on which the scripted model raises
FAULT_TEXT = "the sealed words of the model"


class Recurrence(nn.Module):
    """A recurrence of two inputs whose outcome depends on the order of steps; sums and products alone.

    Such arithmetic is exact to the last bit whatever the batch. Two steps of 3e38 overflow float32.
    """

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Row by row: level' = 0.7 level + x0, trend' = 0.3 trend + x1 level, clock' = seconds of time."""
        if bool((x == 31337.0).any()):
            raise ValueError("the sealed words of the model")
        level = state[:, 0] * 0.7 + x[:, 0]  # (B,)
        trend = state[:, 1] * 0.3 + x[:, 1] * state[:, 0]  # (B,)
        clock = torch.div(time, 1_000_000_000, rounding_mode="floor").float()  # (B,)
        after = torch.stack([level, trend, clock], dim=1)  # (B, 3)
        y = torch.stack([level + trend, level - 2.0 * trend + 0.001 * (clock - state[:, 2])], dim=1)  # (B, 2)
        return y, after

    @torch.jit.export
    def scan(self, x: Tensor, time: Tensor, lengths: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Folds `step` over the first lengths[b] steps of each row."""
        ys: list[Tensor] = []
        for t in range(x.size(1)):
            y, after = self.step(x[:, t], time[:, t], state)
            state = torch.where((lengths > t).unsqueeze(1), after, state)  # (B, 3)
            ys.append(y)
        return torch.stack(ys, dim=1), state  # (B, T, 2)

    @torch.jit.export
    def forecast(self, state: Tensor, time: Tensor, horizon: int, future: Tensor) -> Tensor:
        """Predicts the level, fading, plus the first known future value if there is one."""
        rows: list[Tensor] = []
        for h in range(horizon):
            level = state[:, 0] * 0.7 ** (h + 1)  # (B,)
            if future.size(2) > 0:
                level = level + future[:, h, 0]
            rows.append(torch.stack([level, state[:, 1]], dim=1))
        return torch.stack(rows, dim=1)  # (B, H, 2)


class Sharper(Recurrence):
    """Another version of the Recurrence: the same state, other predictions."""

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Row by row: level' = 0.5 level + x0, trend' = 0.25 trend + x1 level, clock' unchanged."""
        level = state[:, 0] * 0.5 + x[:, 0]  # (B,)
        trend = state[:, 1] * 0.25 + x[:, 1] * state[:, 0]  # (B,)
        after = torch.stack([level, trend, state[:, 2]], dim=1)  # (B, 3)
        return torch.stack([level + trend, level - trend], dim=1), after  # (B, 2)


class Other(Recurrence):
    """Another version of the Recurrence, with any number of inputs and of predicted values."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Row by row: level' = 0.7 level + the last x, the rest unchanged; predicts the level, repeated."""
        level = state[:, :1] * 0.7 + x[:, -1:]  # (B, 1)
        return level.repeat(1, self.num_outputs), torch.cat([level, state[:, 1:]], dim=1)  # (B, O), (B, 3)

    @torch.jit.export
    def forecast(self, state: Tensor, time: Tensor, horizon: int, future: Tensor) -> Tensor:
        """Predicts the level, repeated."""
        return state[:, :1].unsqueeze(1).repeat(1, horizon, self.num_outputs)  # (B, H, O)


class Counter(Recurrence):
    """A Recurrence that counts its steps in the state, whatever the input."""

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Adds one to every value."""
        return state[:, :2] + 1.0, state + 1.0


def manifest_of(**changes: Any) -> dict[str, Any]:
    """Returns the Recurrence's manifest, with some of its entries changed."""
    variable = {"name": "level", "target": "flow", "role": "mean", "quantile": None, "unit": "l/s"}
    return {
        "format_version": 1,
        "name": "recurrence",
        "version": "1",
        "description": "Two numbers in, two numbers out.",
        "inputs": [{"name": "flow", "unit": "l/s"}, {"name": "valve", "unit": ""}],
        "outputs": [
            variable | {"horizon_steps": 1},
            variable | {"name": "high", "role": "quantile", "quantile": 0.9},
        ],
        "future": [],
        "state": {
            "size": 3,
            "layout": [
                {"name": "level", "offset": 0, "size": 1},
                {"name": "trend", "offset": 1, "size": 1},
                {"name": "clock", "offset": 2, "size": 1},
            ],
        },
        "uses_time": False,
        "step_interval_seconds": 1.0,
        "training": {},
    } | changes


def save(path: pathlib.Path, module: nn.Module | None = None, **changes: Any) -> pathlib.Path:
    """Writes a module, scripted, as an artifact file, with the Recurrence's manifest, changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    extra = {"manifest.json": json.dumps(manifest_of(**changes))}
    torch.jit.save(torch.jit.script(module or Recurrence()), str(path), _extra_files=extra)
    return path


@functools.cache
def recurrence(uses_time: bool = False, num_future: int = 0) -> Artifact:
    """Returns the Recurrence as a loaded artifact."""
    future = [{"name": f"plan{number}", "unit": "l/s"} for number in range(num_future)]
    with tempfile.TemporaryDirectory() as folder:
        path = save(pathlib.Path(folder) / "model.pt", uses_time=uses_time, future=future)
        return artifact.load("recurrence", "1", path, CPU)


def renamed(model: Artifact, name: str, version: str) -> Artifact:
    """Returns an artifact that is served under another name."""
    return Artifact(name, version, model.manifest, model.script, model.device)


@dataclasses.dataclass
class Alone:
    """One session of a model on its own: each step folded through `step`, one row at a time."""

    model: Artifact
    num_steps: int = 0

    def __post_init__(self) -> None:
        self.state = torch.zeros(1, self.model.manifest.state_size)

    def step(self, x: Any, time: int = 0) -> bytes:
        """Returns the prediction's bytes."""
        row = torch.tensor(np.asarray(x, np.float32).reshape(1, -1))
        with torch.inference_mode():
            y, self.state = self.model.step(row, torch.tensor([time]), self.state)
        self.num_steps += 1
        return y.numpy().tobytes()

    def fold(self, xs: Any) -> bytes:
        """Returns the predictions' bytes, one after another."""
        return b"".join(self.step(x) for x in xs)


def random_x(*shape: int, seed: int = 5) -> npt.NDArray[np.float32]:
    """Returns normally distributed inputs [*shape, 2] of the Recurrence."""
    return np.random.default_rng(seed).standard_normal((*shape, 2)).astype(np.float32)


def bits(values: Any) -> bytes:
    """Returns float32 values as bytes, to compare without tolerance."""
    return np.asarray(values, np.float32).tobytes()
