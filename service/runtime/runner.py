"""Runs one batch through the artifact: gather the state rows, one call, scatter them back.

Where steps meet tensors, on the CPU; `staged` does the same on a GPU. Does not know sessions, queues or
callers.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from service.arrays import Flags, Float32s, Int64s
from service.runtime.artifact import Artifact
from service.runtime.state_pool import StatePool

Column = Float32s | Int64s


class _Moves(nn.Module):
    """An artifact's script over the rows of a pool: gather, call and scatter with no Python between them.

    Both methods return y and the rows as they were before.
    """

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.model = script

    @torch.jit.export
    def step(self, rows: Tensor, slots: Tensor, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Applies one step to the rows at `slots`."""
        before = rows.index_select(0, slots)  # (B, S)
        y, after = self.model.step(x, time, before)
        rows.index_copy_(0, slots, after)
        return y, before

    @torch.jit.export
    def scan(
        self, rows: Tensor, slots: Tensor, x: Tensor, time: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Applies lengths[b] steps to the rows at `slots`."""
        before = rows.index_select(0, slots)  # (B, S)
        y, after = self.model.scan(x, time, lengths, before)
        rows.index_copy_(0, slots, after)
        return y, before


class Runner:
    """The artifact over its pool of state rows, on the CPU.

    A row whose prediction is not finite is put back: its session stays as it was. All is computed before
    anything is written, so an exception leaves every state as it was. A state that is not finite behind a
    finite prediction is the script's own doing, and harms that session alone.
    """

    def __init__(self, artifact: Artifact, capacity: int) -> None:
        self.artifact = artifact
        self._pool = StatePool(capacity, artifact.manifest.state_size, artifact.device)
        moves = _scripted(_Moves(artifact.script))
        self._step, self._scan = moves.step, moves.scan  # looked up once: each look is by name

    def clear(self, slot: int) -> None:
        """Puts a session's state to its start."""
        self._pool.clear(slot)

    @torch.inference_mode()
    def read(self, slots: Int64s) -> Float32s:
        """Returns copies of sessions' states [N, S]; slots is [N]."""
        (rows,) = self._tensors(slots)
        return self._values(self._pool.gather(rows))

    @torch.inference_mode()
    def put(self, slots: Int64s, states: Float32s) -> None:
        """Gives sessions states [N, S]; slots is [N], each once."""
        self._pool.scatter(*self._tensors(slots, states))

    @torch.inference_mode()
    def step(self, slots: Int64s, x: Float32s, times: Int64s) -> tuple[Float32s, Flags]:
        """Applies one step to each of B sessions.

        Args:
            slots: [B], each once.
            x: [B, F].
            times: [B], Unix ns.

        Returns:
            y [B, O], and which rows were applied [B].
        """
        rows = torch.from_numpy(slots)
        y, before = self._step(self._pool.rows, rows, torch.from_numpy(x), torch.from_numpy(times))
        return self._settle(rows, before, y.numpy())

    @torch.inference_mode()
    def scan(self, slots: Int64s, x: Float32s, times: Int64s, lengths: Int64s) -> tuple[Float32s, Flags]:
        """Applies lengths[b] steps to each of B sessions.

        Args:
            slots: [B], each once.
            x: [B, T, F].
            times: [B, T], Unix ns.
            lengths: [B], 1 to T.

        Returns:
            y [B, T, O] (of no meaning past lengths), and which rows were applied [B].
        """
        rows, xs, at, upto = self._tensors(slots, x, times, lengths)
        y, before = self._scan(self._pool.rows, rows, xs, at, upto)
        found = self._values(y)
        found[np.arange(x.shape[1]) >= lengths[:, None]] = 0.0
        return self._settle(rows, before, found)

    @torch.inference_mode()
    def forecast(self, slot: int, time: int, horizon: int, future: Float32s) -> Float32s:
        """Returns one session's forecast [H, O]; future is [H, K]. Its state stays as it was."""
        row, last, known = self._tensors(np.array([slot]), np.array([time]), future[None])
        y = self.artifact.forecast(self._pool.gather(row), last, horizon, known)
        return self._values(y[0])

    def warm_up(self, max_batch: int, max_piece: int) -> None:
        """Runs batches of every power of two, so that no client waits for a first time.

        The states of slots 0 .. max_batch - 1 are left cleared.
        """
        num_inputs = len(self.artifact.manifest.inputs)
        size = 1
        while size <= max_batch:
            slots, times = np.arange(size), np.zeros(size, np.int64)
            for _ in range(3):  # TorchScript profiles the first call, compiles on the second
                self.step(slots, np.zeros((size, num_inputs), np.float32), times)
            size *= 2
        x = np.zeros((1, max_piece, num_inputs), np.float32)
        for _ in range(3):
            self.scan(np.arange(1), x, np.zeros((1, max_piece), np.int64), np.full(1, max_piece))
        for slot in range(size // 2):
            self._pool.clear(slot)

    def _settle(self, rows: Tensor, before: Tensor, y: Float32s) -> tuple[Float32s, Flags]:
        """Puts back the rows whose predictions are not finite; returns y and which rows stay applied."""
        finite = np.isfinite(y)
        if finite.all():
            return y, np.ones(len(y), np.bool_)
        applied: Flags = np.asarray(finite.reshape(len(y), -1).all(axis=1))
        (chosen,) = self._tensors(np.flatnonzero(~applied))
        self._pool.scatter(rows[chosen], before[chosen])
        return y, applied

    def _tensors(self, *columns: Column) -> Sequence[Tensor]:
        """Returns columns as tensors where the model runs."""
        return [torch.from_numpy(column) for column in columns]

    def _values(self, tensor: Tensor) -> Float32s:
        """Returns a result's values."""
        values: Float32s = tensor.numpy()
        return values


def _scripted(module: nn.Module) -> Any:
    """Returns a module as a script, frozen: what depends on its weights alone is computed here, once."""
    with warnings.catch_warnings():  # TorchScript is meant: see docs/adr/0001
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        return torch.jit.freeze(torch.jit.script(module.eval()), preserved_attrs=["step", "scan"])
