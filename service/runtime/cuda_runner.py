"""Runs batches on a GPU, where the states stay: a batch is sent in one copy, a step is a replay of a graph.

A graph works on the memory on which it was recorded, so batches have fixed memory: a bucket for each power of
two, to which a batch is padded. Does not know sessions or callers, nor how CUDA records.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from service.arrays import Flags, Float32s, Int64s
from service.runtime.artifact import Artifact
from service.runtime.cuda import Call, CudaGraphs, reason_of
from service.runtime.runner import Column, Runner
from service.telemetry import log

_Described = tuple[tuple[int, ...], npt.DTypeLike]

_LEAST_BUCKET = 4  # the shipped models compute rows in fours anyway
_ALIGNMENT = 16  # bytes; the most that a kernel reads at once

_DTYPES = {np.dtype(np.int64): torch.int64, np.dtype(np.float32): torch.float32}


class GraphRecorder(Protocol):
    """What a runner needs of CUDA apart from tensors; see `cuda.CudaGraphs`."""

    pins_memory: bool

    def record(self, call: Call) -> Call:
        """Returns a call that does the same on the same memory, with results in the same memory each time."""

    def wait(self) -> None:
        """Returns when the device has finished all that was asked of it."""


def runner_for(artifact: Artifact, capacity: int) -> Runner:
    """Returns a runner for the device that an artifact is on."""
    if artifact.device.type == "cuda":
        return CudaRunner(artifact, capacity, CudaGraphs())
    return Runner(artifact, capacity)


class TransferBuffer:
    """Columns side by side in one range of bytes, on the host and on the device: one copy sends all of them.

    Args:
        columns: the shape and type of each column, int64 or float32.
        pins_memory: whether to pin the host's memory.
    """

    def __init__(self, columns: Sequence[_Described], device: torch.device, *, pins_memory: bool) -> None:
        sizes = [int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in columns]
        aligned = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
        starts = [end - size for end, size in zip(accumulate(aligned), aligned, strict=True)]
        self._host_bytes = torch.empty(sum(aligned), dtype=torch.uint8, pin_memory=pins_memory)
        self._device_bytes = torch.empty(sum(aligned), dtype=torch.uint8, device=device)
        self.host: list[npt.NDArray[Any]] = []
        """The columns on the host, to be written."""
        self.device: list[Tensor] = []
        """The columns on the device."""
        for start, size, (shape, kind) in zip(starts, sizes, columns, strict=True):
            place = slice(start, start + size)
            self.host.append(self._host_bytes.numpy()[place].view(kind).reshape(shape))
            self.device.append(self._device_bytes[place].view(_DTYPES[np.dtype(kind)]).view(shape))

    def send(self) -> None:
        """Starts copying the columns to the device; wait before writing them again."""
        self._device_bytes.copy_(self._host_bytes, non_blocking=True)


class _Bucket:
    """The fixed memory of batches of up to `size` steps, and the call that runs on that memory.

    Args:
        spare: the row of the pool that padding steps.
    """

    call: Call

    def __init__(self, size: int, model: Artifact, spare: int, *, pins_memory: bool) -> None:
        about = model.manifest
        columns = [((size,), np.int64), ((size,), np.int64), ((size, len(about.inputs)), np.float32)]
        self._buffer = TransferBuffer(columns, model.device, pins_memory=pins_memory)
        self._spare = spare
        self._y = torch.empty((size, len(about.outputs)), pin_memory=pins_memory)
        self._y_values: Float32s = self._y.numpy()  # the same memory
        self.size = size
        self.slots, self.times, self.x = self._buffer.device

    def send(self, slots: Int64s, times: Int64s, x: Float32s) -> None:
        """Sends a batch to the device, padded with steps of zeros, on which the model was tried out."""
        count = len(slots)
        for column, given, padding in zip(
            self._buffer.host, (slots, times, x), (self._spare, 0, 0), strict=True
        ):
            column[:count] = given
            column[count:] = padding
        self._buffer.send()

    def fetch(self, y: Tensor) -> Float32s:
        """Starts copying the predictions to the host, and returns the memory; wait before reading it."""
        self._y.copy_(y, non_blocking=True)
        return self._y_values


class CudaRunner(Runner):
    """The artifact over its pool on a GPU; as Runner, except for the last bits of a prediction.

    The pool has one row more than its capacity. No session owns this spare row: padding steps it, and it is
    zeroed each time. Without a warm-up there are no buckets, and batches run without padding and graphs.

    Args:
        recorder: makes the graphs.
    """

    def __init__(self, artifact: Artifact, capacity: int, recorder: GraphRecorder) -> None:
        super().__init__(artifact, capacity + 1)
        self._spare = capacity
        self._recorder = recorder
        self._buckets: list[_Bucket] = []  # by size
        self._sizes: list[int] = []
        self.num_graphs = 0
        """How many buckets run as graphs."""

    @torch.inference_mode()
    def step(self, slots: Int64s, x: Float32s, times: Int64s) -> tuple[Float32s, Flags]:
        """Applies one step to each of B sessions, in the smallest bucket that holds them; see Runner."""
        count = len(slots)
        at = bisect_left(self._sizes, count)
        if at == len(self._sizes):
            rows, xs, when = self._to_device(slots, x, times)
            y, before = self._step(self._pool.rows, rows, xs, when)
            return self._restore_not_finite(rows, before, self._to_host(y))
        bucket = self._buckets[at]
        bucket.send(slots, times, x)
        y, before = bucket.call()
        found = bucket.fetch(y)
        self._recorder.wait()
        return self._restore_not_finite(bucket.slots[:count], before[:count], found[:count].copy())

    @torch.inference_mode()
    def warm_up(self, max_batch: int, max_piece: int) -> None:
        """Makes and records the buckets for up to `max_batch` steps; then runs batches as Runner does."""
        self._buckets = [self._bucket(size) for size in _sizes(max_batch)]
        self._sizes = [bucket.size for bucket in self._buckets]
        self._record()
        super().warm_up(max_batch, max_piece)

    def _bucket(self, size: int) -> _Bucket:
        """Returns a new bucket that holds padding alone."""
        bucket = _Bucket(size, self.artifact, self._spare, pins_memory=self._recorder.pins_memory)
        none = np.zeros(0, np.int64)
        bucket.send(none, none, np.zeros((0, bucket.x.shape[1]), np.float32))
        self._recorder.wait()

        def call() -> tuple[Tensor, Tensor]:
            y, before = self._step(self._pool.rows, bucket.slots, bucket.x, bucket.times)
            self._pool.clear(self._spare)
            return y.contiguous(), before  # contiguous, so that `fetch` is one plain copy

        bucket.call = call
        return bucket

    def _record(self) -> None:
        """Makes a graph of every bucket's call, or of none. Buckets hold padding, so that no state moves."""
        largest_first = self._buckets[::-1]  # so that the smaller graphs fit into the largest one's memory
        try:
            graphs = [self._recorder.record(bucket.call) for bucket in largest_first]
        except Exception as error:  # a script may raise anything
            log.warning(
                "cuda_graphs_unused",
                model=str(self.artifact),
                why=reason_of(error),
                effect="steps run on the GPU without graphs",
            )
            return
        for bucket, graph in zip(largest_first, graphs, strict=True):
            bucket.call = graph
        self.num_graphs = len(graphs)

    def _to_device(self, *columns: Column) -> Sequence[Tensor]:
        described = [(column.shape, column.dtype) for column in columns]
        buffer = TransferBuffer(described, self.artifact.device, pins_memory=self._recorder.pins_memory)
        for place, column in zip(buffer.host, columns, strict=True):
            place[...] = column
        buffer.send()
        return buffer.device

    def _to_host(self, tensor: Tensor) -> Float32s:
        values: Float32s = tensor.cpu().numpy()
        return values


def _sizes(max_batch: int) -> Iterator[int]:
    """Yields the powers of two from the least bucket to the first that holds `max_batch`."""
    size = _LEAST_BUCKET
    yield size
    while size < max_batch:
        size *= 2
        yield size
