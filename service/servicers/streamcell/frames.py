"""Frames: many steps of many sessions as columns of bytes, into blocks of work and back."""

from collections.abc import Callable, Mapping

import numpy as np
from streamcell.v1 import streamcell_pb2 as pb

from service import errors
from service.arrays import Flags, Float32s, Int64s
from service.engine.engine import Engine
from service.engine.work import INDEX_NEXT, Block, Phase
from service.errors import Reason, StreamcellError
from service.servicers import values
from service.servicers.streamcell import convert
from service.servicers.streamcell.bindings import Bindings
from service.servicers.streamcell.selections import Selection


class FrameWork:
    """A frame under way: its blocks run the sessions that were found, the others have their errors.

    There is a block for each version of the model that they run on; mostly there is one.

    Args:
        frame: the request.
        bindings: the stream's bound sessions.
        failed: sessions that could not be brought from the store, by id, and why.
        max_steps: most steps of a frame.
        check_room: raises OVERLOADED if an engine has no room for so many steps; called before the values are
            looked at, as what is not to run should cost little.
        on_done: called when a block is done.

    Raises:
        NotResident: sessions may be in the store, or are to be moved; nothing of the frame runs.
        StreamcellError: the frame as a whole is refused; nothing of it runs.
    """

    def __init__(
        self,
        frame: pb.Frame,
        bindings: Bindings,
        failed: Mapping[str, StreamcellError],
        max_steps: int,
        check_room: Callable[[Engine, int], None],
        on_done: Callable[[Block], None],
    ) -> None:
        self.selection = _selection(frame, bindings, failed)
        self._counts = _counts(frame, self.selection.count, max_steps)
        parts, count = self.selection.parts, self.selection.count
        num_rows = int(self._counts.sum())
        for part in parts:
            check_room(part.engine, int(self._counts[part.positions].sum()))
        x = _inputs(frame, parts[0].engine, num_rows)
        times = values.times("time_raw", frame.time_raw, (), num_rows)
        indexes = _indexes(frame, count)
        self._rows: list[Int64s | slice] = [slice(None)]
        if len(parts[0].positions) < count:
            self._rows = [
                np.flatnonzero(np.repeat(_mask(part.positions, count), self._counts)) for part in parts
            ]
        self.blocks = [
            (
                part.engine,
                Block(
                    part.slots,
                    part.generations,
                    counts=self._counts[part.positions],
                    x=x[rows],
                    times=None if times is None else times[rows],
                    indexes=indexes[part.positions],
                    num_outputs=len(part.engine.manifest.outputs),
                    wants_replies=True,
                    arrived_ns=part.engine.now(),
                    on_done=on_done,
                ),
            )
            for part, rows in zip(parts, self._rows, strict=True)
        ]
        """The work, and whose it is."""

    @property
    def is_done(self) -> bool:
        """Whether all of its blocks are done."""
        return all(block.phase is Phase.DONE for _, block in self.blocks)

    def response(self) -> pb.FrameResponse:
        """Returns the response, once it is done."""
        block, count = self.blocks[0][1], self.selection.count
        if len(self.blocks) == 1 and not self.selection.missing and not block.errors:
            return pb.FrameResponse(
                y_raw=block.y.tobytes(),
                step_index_raw=block.step_indexes.tobytes(),
                num_durable_steps_raw=self._num_durable(),
            )
        y = np.full((int(self._counts.sum()), block.num_outputs), np.nan, np.float32)
        indexes = np.zeros(count, np.int64)
        for part, rows, (_, block) in zip(self.selection.parts, self._rows, self.blocks, strict=True):
            y[rows] = block.y
            indexes[part.positions] = block.step_indexes
        failed = self._errors(y)
        return pb.FrameResponse(
            y_raw=y.tobytes(),
            step_index_raw=indexes.tobytes(),
            num_durable_steps_raw=self._num_durable(),
            errors=failed,
        )

    def _num_durable(self) -> bytes:
        """Returns how many steps of each session are in the store, packed; nothing where there is none."""
        if not self.blocks[0][0].sessions.durability.is_enabled:
            return b""
        column = np.zeros(self.selection.count, np.int64)
        for part in self.selection.parts:
            column[part.positions] = convert.num_durable_steps(part.engine, part.slots, part.generations)
        return column.tobytes()

    def _errors(self, y: Float32s) -> list[pb.FrameError]:
        """Returns the entries that failed, and blanks their rows of y."""
        failed = {at: (error, 0) for at, error in self.selection.missing.items()}
        for part, (_, block) in zip(self.selection.parts, self.blocks, strict=True):
            for entry, error in block.errors.items():
                failed[int(part.positions[entry])] = (error, int(block.num_applied[entry]))
        ends = np.cumsum(self._counts)
        for at in failed:
            y[ends[at] - self._counts[at] : ends[at]] = np.nan
        return [
            pb.FrameError(entry=at, num_applied=num_applied, error=convert.stream_error(error))
            for at, (error, num_applied) in sorted(failed.items())
        ]

    @property
    def entry_errors(self) -> list[StreamcellError]:
        """The errors of its entries, to be counted."""
        of_blocks = [error for _, block in self.blocks for error in block.errors.values()]
        return [*self.selection.missing.values(), *of_blocks]


def _selection(frame: pb.Frame, bindings: Bindings, failed: Mapping[str, StreamcellError]) -> Selection:
    if frame.session_ids and frame.session_raw:
        raise errors.invalid_argument("session_raw", "sessions are given twice, by id and by number")
    if frame.session_ids:
        return bindings.named(list(frame.session_ids), failed)
    if frame.session_raw:
        count = len(frame.session_raw) // 4
        return bindings.numbered(values.column("session_raw", frame.session_raw, "<u4", count), failed)
    return bindings.all(failed)


def _counts(frame: pb.Frame, count: int, max_steps: int) -> Int64s:
    counts = np.ones(count, np.int64)
    if frame.num_steps_raw:
        counts = values.column("num_steps_raw", frame.num_steps_raw, "<u4", count)
    if not counts.all():
        raise errors.invalid_argument("num_steps_raw", "an entry has no step")
    if counts.sum() > max_steps:
        raise errors.refusal(Reason.TOO_MANY_STEPS, got=int(counts.sum()), max_message_steps=max_steps)
    return counts


def _inputs(frame: pb.Frame, engine: Engine, num_rows: int) -> Float32s:
    width = len(engine.manifest.inputs)
    if len(frame.x_raw) != 4 * width * num_rows:
        message = f"{len(frame.x_raw)} bytes; {num_rows} steps of {width} float32 are {4 * width * num_rows}"
        raise errors.invalid_argument("x_raw", message)
    x = np.frombuffer(frame.x_raw, "<f4").reshape(num_rows, width)
    return values.finite(engine, "x_raw", x)


def _indexes(frame: pb.Frame, count: int) -> Int64s:
    if not frame.step_index_raw:
        return np.full(count, INDEX_NEXT, np.int64)
    return values.column("step_index_raw", frame.step_index_raw, "<u8", count)


def _mask(positions: Int64s, count: int) -> Flags:
    mask = np.zeros(count, np.bool_)
    mask[positions] = True
    return mask
