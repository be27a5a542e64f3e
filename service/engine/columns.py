"""The columns of one cell call: gathered from steps and pieces of blocks, and their results scattered back.

Row b of the columns is one session's next `lengths[b]` steps. Does not know sessions' bookkeeping or tensors.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from service.arrays import Flags, Float32s, Int64s
from service.engine.admission import Admission
from service.engine.scheduler import Piece
from service.engine.work import Step
from service.errors import StreamcellError, invalid_argument


@dataclasses.dataclass(frozen=True, slots=True)
class PieceRows:
    """The rows of a piece in a cell call: of its n entries that have steps left, at most T steps each."""

    piece: Piece
    entries: Int64s  # (n,), indexes into the block's columns
    lengths: Int64s  # (n,), steps of each
    rows: Int64s  # (n, T), rows of the block; past an entry's length its last row again


class Columns(NamedTuple):  # one for every cell call: a frozen dataclass takes twice as long to make
    """One call's input: the single steps first, then the rows of the pieces in order."""

    steps: list[Step]
    pieces: list[PieceRows]
    slots: Int64s  # (B,)
    lengths: Int64s  # (B,)
    x: Float32s  # (B, T, F)
    times: Int64s  # (B, T), as the model gets them
    given_times: Int64s  # (B, T), as the requests gave them


def gather(steps: list[Step], pieces: list[Piece], admission: Admission, num_inputs: int) -> Columns | None:
    """Returns the columns of admitted steps and pieces; None if no row is left to run."""
    if not pieces:
        return _columns_of_steps(steps, num_inputs, admission.uses_time) if steps else None
    left = [rows for piece in pieces if (rows := _rows_left(piece)) is not None]
    longest = max((each.rows.shape[1] for each in left), default=1)
    parts = [_columns_of_piece(each, longest, admission) for each in left]
    if steps:  # then every piece is of a frame, so `longest` is 1
        parts.insert(0, _columns_of_steps(steps, num_inputs, admission.uses_time))
    if len(parts) < 2:
        return parts[0] if parts else None
    return Columns(
        steps,
        left,
        slots=np.concatenate([part.slots for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        x=np.concatenate([part.x for part in parts]),
        times=np.concatenate([part.times for part in parts]),
        given_times=np.concatenate([part.given_times for part in parts]),
    )


def scatter(columns: Columns, y: Float32s, applied: Flags) -> None:
    """Gives each step and block its predictions, or the error of a row that was not applied.

    Args:
        y: [B, T, O].
        applied: [B].
    """
    num_steps = len(columns.steps)
    # As Python floats, which hold exactly the float32 values.
    for step, values in zip(columns.steps, y[:num_steps, 0].tolist(), strict=True):
        step.y = values
    for row in np.flatnonzero(~applied[:num_steps]).tolist():
        columns.steps[row].y = []
        columns.steps[row].error = out_of_range("x")
    start = num_steps
    for each in columns.pieces:
        stop = start + len(each.entries)
        _scatter_piece(each, y[start:stop], applied[start:stop])
        start = stop


def out_of_range(field: str) -> StreamcellError:
    """Returns the error for an input for which the model has no finite prediction."""
    return invalid_argument(
        field,
        "the model has no finite prediction for it; it was not applied and the session stands as it was",
    )


def _columns_of_steps(steps: list[Step], num_inputs: int, uses_time: bool) -> Columns:
    """Returns the columns of single steps alone, in few operations: nearly every message comes this way."""
    count = len(steps)
    # A bytearray, because torch wants memory that could be written.
    x = np.frombuffer(bytearray().join([step.x for step in steps]), np.float32)
    times = given_times = np.zeros((count, 1), np.int64)
    if uses_time:
        times = np.array([step.run_time for step in steps], np.int64)[:, None]
        given_times = np.array([step.time for step in steps], np.int64)[:, None]
    return Columns(
        steps,
        [],
        slots=np.array([step.slot for step in steps], np.int64),
        lengths=np.ones(count, np.int64),
        x=x.reshape(count, 1, num_inputs),
        times=times,
        given_times=given_times,
    )


def _columns_of_piece(left: PieceRows, longest: int, admission: Admission) -> Columns:
    """Returns the columns of one piece alone, `longest` time steps wide."""
    block, rows = left.piece.block, left.rows
    if rows.shape[1] < longest:
        rows = np.pad(rows, ((0, 0), (0, longest - rows.shape[1])), mode="edge")
    return Columns(
        [],
        [left],
        slots=block.slots[left.entries],
        lengths=left.lengths,
        x=block.x[rows],
        times=admission.run_times(block, left.entries, rows),
        given_times=admission.given_times(block, rows),
    )


def _rows_left(piece: Piece) -> PieceRows | None:
    """Returns the rows of a piece that are still to run; None if there are none."""
    block = piece.block
    if not block.is_long:
        entries = piece.entries[block.totals[piece.entries] > 0]
        rows = block.starts[entries][:, None]
        return PieceRows(piece, entries, np.ones(len(entries), np.int64), rows) if len(entries) else None
    left = block.totals[piece.entries] - piece.offset
    entries, left = piece.entries[left > 0], left[left > 0]
    if not len(entries):
        return None
    lengths = np.minimum(left, piece.length)
    # Past an entry's length its last row is repeated: of no effect, and finite.
    ahead = np.minimum(np.arange(int(lengths.max())), lengths[:, None] - 1)  # (n, T)
    rows = block.starts[entries][:, None] + piece.offset + ahead  # (n, T)
    return PieceRows(piece, entries, lengths, rows)


def _scatter_piece(ran: PieceRows, y: Float32s, applied: Flags) -> None:
    """Writes the predictions y [n, T, O] of a piece into its block, and fails the entries not applied."""
    block = ran.piece.block
    if not block.is_long and applied.all():
        block.y[ran.rows[:, 0]] = y[:, 0]
        block.num_applied[ran.entries] += 1
        return
    filled = (np.arange(ran.rows.shape[1]) < ran.lengths[:, None]) & applied[:, None]  # (n, T)
    block.y[ran.rows[filled]] = y[:, : ran.rows.shape[1]][filled]
    block.num_applied[ran.entries[applied]] += ran.lengths[applied]
    for entry in ran.entries[~applied].tolist():
        block.fail(entry, out_of_range("x_raw"))
