"""Runs one batch through the artifact on the CPU: gathers state rows, calls the script, scatters the rows.

`cuda_runner` does the same on a GPU. Does not know sessions, queues or callers.
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


class _GatherCallScatter(nn.Module):
    """An artifact's script with a gather before and a scatter after it, without Python in between.

    Both methods return y and a copy of the rows as they were before.
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

    A row whose prediction is not finite is restored, so that its session is unchanged. The script computes
    all rows before any is written, so that an exception leaves every state unchanged. A script may return a
    state that is not finite with a finite prediction; this harms the session alone.
    """

    def __init__(self, artifact: Artifact, capacity: int) -> None:
        self.artifact = artifact
        self._pool = StatePool(capacity, artifact.manifest.state_size, artifact.device)
        script = _frozen_script(_GatherCallScatter(artifact.script))
        self._step, self._scan = script.step, script.scan  # once, because a script finds methods by name

    def clear(self, slot: int) -> None:
        """Puts a session's state back to its start."""
        self._pool.clear(slot)

    @torch.inference_mode()
    def read(self, slots: Int64s) -> Float32s:
        """Returns copies of the states [N, S] of sessions; slots is [N]."""
        (rows,) = self._to_device(slots)
        return self._to_host(self._pool.gather(rows))

    @torch.inference_mode()
    def put(self, slots: Int64s, states: Float32s) -> None:
        """Overwrites the states of sessions with `states` [N, S]; slots is [N], each once."""
        self._pool.scatter(*self._to_device(slots, states))

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
        return self._restore_not_finite(rows, before, y.numpy())

    @torch.inference_mode()
    def scan(self, slots: Int64s, x: Float32s, times: Int64s, lengths: Int64s) -> tuple[Float32s, Flags]:
        """Applies lengths[b] steps to each of B sessions.

        Args:
            slots: [B], each once.
            x: [B, T, F].
            times: [B, T], Unix ns.
            lengths: [B], 1 to T.

        Returns:
            y [B, T, O] (zero past lengths), and which rows were applied [B].
        """
        rows, xs, at, upto = self._to_device(slots, x, times, lengths)
        y, before = self._scan(self._pool.rows, rows, xs, at, upto)
        found = self._to_host(y)
        found[np.arange(x.shape[1]) >= lengths[:, None]] = 0.0
        return self._restore_not_finite(rows, before, found)

    @torch.inference_mode()
    def forecast(self, slot: int, time: int, horizon: int, future: Float32s) -> Float32s:
        """Returns one session's forecast [H, O]; future is [H, K]. The session's state is unchanged."""
        row, last, known = self._to_device(np.array([slot]), np.array([time]), future[None])
        y = self.artifact.forecast(self._pool.gather(row), last, horizon, known)
        return self._to_host(y[0])

    def warm_up(self, max_batch: int, max_piece: int) -> None:
        """Runs batches of every power of two, so that no client waits for a compilation.

        Afterwards the states of slots 0 .. max_batch - 1 are cleared.
        """
        num_inputs = len(self.artifact.manifest.inputs)
        size = 1
        while size <= max_batch:
            slots, times = np.arange(size), np.zeros(size, np.int64)
            for _ in range(3):  # TorchScript profiles the first call and compiles in the second
                self.step(slots, np.zeros((size, num_inputs), np.float32), times)
            size *= 2
        x = np.zeros((1, max_piece, num_inputs), np.float32)
        for _ in range(3):
            self.scan(np.arange(1), x, np.zeros((1, max_piece), np.int64), np.full(1, max_piece))
        for slot in range(size // 2):
            self._pool.clear(slot)

    def _restore_not_finite(self, rows: Tensor, before: Tensor, y: Float32s) -> tuple[Float32s, Flags]:
        """Restores the rows whose predictions are not finite; returns y and which rows stay applied [B].

        `rows` [B] are the rows' places in the pool, `before` [B, S] their earlier states.
        """
        finite = np.isfinite(y)
        if finite.all():
            return y, np.ones(len(y), np.bool_)
        applied: Flags = np.asarray(finite.reshape(len(y), -1).all(axis=1))
        (chosen,) = self._to_device(np.flatnonzero(~applied))
        self._pool.scatter(rows[chosen], before[chosen])
        return y, applied

    def _to_device(self, *columns: Column) -> Sequence[Tensor]:
        """Returns columns as tensors on the model's device."""
        return [torch.from_numpy(column) for column in columns]

    def _to_host(self, tensor: Tensor) -> Float32s:
        """Returns a tensor's values as an array on the host."""
        values: Float32s = tensor.numpy()
        return values


def _frozen_script(module: nn.Module) -> Any:
    """Returns a module as a frozen script: what depends on the weights alone is computed now, once."""
    with warnings.catch_warnings():  # TorchScript is used on purpose: docs/adr/0001
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        return torch.jit.freeze(torch.jit.script(module.eval()), preserved_attrs=["step", "scan"])
