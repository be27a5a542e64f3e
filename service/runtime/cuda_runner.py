"""Runs batches on a GPU: the pool lies there, a batch goes there in one copy, a step is one graph's replay.

A graph works on the memory that it was recorded on, so steps have fixed places: a bucket for each power of
two, in which a batch is padded to the bucket's size. Does not know sessions or callers, nor how CUDA records.
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
from service.runtime.cuda import Call, Graphs, reason_of
from service.runtime.runner import Column, Runner
from service.telemetry import log

_Described = tuple[tuple[int, ...], npt.DTypeLike]

_LEAST_BUCKET = 4  # the shipped models compute in rows by four anyway
_ALIGNMENT = 16  # bytes; the widest that a kernel reads at once

_DTYPES = {np.dtype(np.int64): torch.int64, np.dtype(np.float32): torch.float32}


class Recorder(Protocol):
    """What a runner needs of CUDA beyond its tensors; see `cuda.Graphs`."""

    pins: bool

    def record(self, call: Call) -> Call:
        """Returns a call that does the same on the same places, its results in the same places each time."""

    def wait(self) -> None:
        """Returns when the device has done all that it was told."""


def runner_for(artifact: Artifact, capacity: int) -> Runner:
    """Returns the runner for the device that an artifact is on."""
    if artifact.device.type == "cuda":
        return StagedRunner(artifact, capacity, Graphs())
    return Runner(artifact, capacity)


class Parcel:
    """Columns side by side in one run of bytes, on the host and on the device: one copy moves all.

    Args:
        columns: the shape and type of each, int64 or float32.
        pins: whether the host's memory is to be pinned.
    """

    def __init__(self, columns: Sequence[_Described], device: torch.device, pins: bool) -> None:
        sizes = [int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in columns]
        room = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
        runs = [
            slice(end - each, end - each + size)
            for end, each, size in zip(accumulate(room), room, sizes, strict=True)
        ]
        self._host = torch.empty(sum(room), dtype=torch.uint8, pin_memory=pins)
        self._device = torch.empty(sum(room), dtype=torch.uint8, device=device)
        self.here: list[npt.NDArray[Any]] = []
        """The columns on the host, to be written."""
        self.there: list[Tensor] = []
        """The columns on the device."""
        for run, (shape, kind) in zip(runs, columns, strict=True):
            self.here.append(self._host.numpy()[run].view(kind).reshape(shape))
            self.there.append(self._device[run].view(_DTYPES[np.dtype(kind)]).view(shape))

    def send(self) -> None:
        """Copies the columns to the device; they may be written again when it has been waited for."""
        self._device.copy_(self._host, non_blocking=True)


class _Bucket:
    """The places of batches of up to `size` steps, and the call over them.

    Args:
        spare: the row of the pool that padding steps.
    """

    call: Call

    def __init__(self, size: int, model: Artifact, spare: int, pins: bool) -> None:
        about = model.manifest
        columns = [((size,), np.int64), ((size,), np.int64), ((size, len(about.inputs)), np.float32)]
        self._parcel = Parcel(columns, model.device, pins)
        self._spare = spare
        self._y = torch.empty((size, len(about.outputs)), pin_memory=pins)
        self._found: Float32s = self._y.numpy()
        self.size = size
        self.slots, self.times, self.x = self._parcel.there

    def send(self, slots: Int64s, times: Int64s, x: Float32s) -> None:
        """Sends a batch to the device, padded with steps that the model was tried out on: of zeros."""
        count = len(slots)
        for column, given, padding in zip(
            self._parcel.here, (slots, times, x), (self._spare, 0, 0), strict=True
        ):
            column[:count] = given
            column[count:] = padding
        self._parcel.send()

    def fetch(self, y: Tensor) -> Float32s:
        """Begins to copy the predictions back; returns the memory that holds them once waited for."""
        self._y.copy_(y, non_blocking=True)
        return self._found


class StagedRunner(Runner):
    """The artifact over its pool on a GPU; what Runner says holds but for the last bits of a prediction.

    The pool has one row more than its capacity, which nobody owns: padding steps it, and it is put back to
    zeros each time. Without a warm-up there are no buckets, and every batch is run as it comes.

    Args:
        recorder: makes the graphs.
    """

    def __init__(self, artifact: Artifact, capacity: int, recorder: Recorder) -> None:
        super().__init__(artifact, capacity + 1)
        self._spare = capacity
        self._recorder = recorder
        self._buckets: list[_Bucket] = []  # by size
        self._sizes: list[int] = []
        self.num_graphs = 0
        """Of how many sizes batches run as graphs."""

    @torch.inference_mode()
    def step(self, slots: Int64s, x: Float32s, times: Int64s) -> tuple[Float32s, Flags]:
        """Applies one step to each of B sessions, in the smallest bucket that holds them; see Runner."""
        count = len(slots)
        at = bisect_left(self._sizes, count)
        if at == len(self._sizes):
            rows, xs, when = self._tensors(slots, x, times)
            y, before = self._step(self._pool.rows, rows, xs, when)
            return self._settle(rows, before, self._values(y))
        bucket = self._buckets[at]
        bucket.send(slots, times, x)
        y, before = bucket.call()
        found = bucket.fetch(y)
        self._recorder.wait()
        return self._settle(bucket.slots[:count], before[:count], found[:count].copy())

    @torch.inference_mode()
    def warm_up(self, max_batch: int, max_piece: int) -> None:
        """Makes the buckets for up to `max_batch` steps and records each; then as Runner."""
        self._buckets = [self._bucket(size) for size in _sizes(max_batch)]
        self._sizes = [bucket.size for bucket in self._buckets]
        self._record()
        super().warm_up(max_batch, max_piece)

    def _bucket(self, size: int) -> _Bucket:
        """Returns a bucket that holds padding alone."""
        bucket = _Bucket(size, self.artifact, self._spare, self._recorder.pins)
        none = np.zeros(0, np.int64)
        bucket.send(none, none, np.zeros((0, bucket.x.shape[1]), np.float32))
        self._recorder.wait()

        def call() -> tuple[Tensor, Tensor]:
            y, before = self._step(self._pool.rows, bucket.slots, bucket.x, bucket.times)
            self._pool.clear(self._spare)
            return y.contiguous(), before  # so that to fetch y is one plain copy

        bucket.call = call
        return bucket

    def _record(self) -> None:
        """Makes a graph of every bucket's call, or of none; over padding alone, so that no state moves."""
        largest_first = self._buckets[::-1]  # so that the smaller find room in its memory
        try:
            graphs = [self._recorder.record(bucket.call) for bucket in largest_first]
        except Exception as error:  # a script may raise whatever it likes
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

    def _tensors(self, *columns: Column) -> Sequence[Tensor]:
        parcel = Parcel(
            [(each.shape, each.dtype) for each in columns], self.artifact.device, self._recorder.pins
        )
        for place, column in zip(parcel.here, columns, strict=True):
            place[...] = column
        parcel.send()
        return parcel.there

    def _values(self, tensor: Tensor) -> Float32s:
        values: Float32s = tensor.cpu().numpy()
        return values


def _sizes(max_batch: int) -> Iterator[int]:
    """Yields the powers of two from the least bucket to the first that holds `max_batch`."""
    size = _LEAST_BUCKET
    yield size
    while size < max_batch:
        size *= 2
        yield size
