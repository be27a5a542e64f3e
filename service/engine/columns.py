"""The columns of one cell call: gathered from steps and pieces of blocks, and handed back to them.

Row b of the columns is one session's next `lengths[b]` steps. Does not know sessions' bookkeeping or tensors.
"""

import dataclasses

import numpy as np

from service.arrays import Flags, Float32s, Int64s
from service.engine.admission import Admission
from service.engine.scheduler import Piece
from service.engine.work import Step
from service.errors import StreamcellError, invalid_argument


@dataclasses.dataclass(frozen=True, slots=True)
class PieceRows:
    """Where a piece lies in the columns: its entries [n] and the rows of its block [n, T]."""

    piece: Piece
    entries: Int64s
    lengths: Int64s
    rows: Int64s


@dataclasses.dataclass(frozen=True, slots=True)
class Columns:
    """One call's input: the single steps first, then the parts in order."""

    steps: list[Step]
    parts: list[PieceRows]
    slots: Int64s  # (B,)
    lengths: Int64s  # (B,)
    x: Float32s  # (B, T, F)
    times: Int64s  # (B, T), what the model gets
    given_times: Int64s  # (B, T), what the requests said


def gather(steps: list[Step], pieces: list[Piece], admission: Admission, num_inputs: int) -> Columns | None:
    """Returns the columns of admitted steps and pieces; None where no row is left to run."""
    if not pieces:
        return _of_steps(steps, num_inputs, admission.uses_time) if steps else None
    parts = [part for piece in pieces if (part := _rows_of(piece)) is not None]
    longest = max((part.rows.shape[1] for part in parts), default=1)
    every = [_of_piece(part, longest, admission) for part in parts]
    if steps:  # where they are, no part is longer than one step
        every.insert(0, _of_steps(steps, num_inputs, admission.uses_time))
    if len(every) < 2:
        return every[0] if every else None
    return Columns(
        steps,
        parts,
        slots=np.concatenate([each.slots for each in every]),
        lengths=np.concatenate([each.lengths for each in every]),
        x=np.concatenate([each.x for each in every]),
        times=np.concatenate([each.times for each in every]),
        given_times=np.concatenate([each.given_times for each in every]),
    )


def hand_back(columns: Columns, y: Float32s, applied: Flags) -> None:
    """Gives each step and block its predictions, or the error of a row that was not applied.

    Args:
        y: [B, T, O].
        applied: [B].
    """
    count = len(columns.steps)
    # As Python floats, which hold exactly the float32 values.
    for step, values in zip(columns.steps, y[:count, 0].tolist(), strict=True):
        step.y = values
    for at in np.flatnonzero(~applied[:count]).tolist():
        columns.steps[at].y = []
        columns.steps[at].error = out_of_range("x")
    at = count
    for part in columns.parts:
        until = at + len(part.entries)
        _hand_back_piece(part, y[at:until], applied[at:until])
        at = until


def out_of_range(field: str) -> StreamcellError:
    """Returns the error for an input that the model has no finite answer to."""
    return invalid_argument(
        field,
        "the model has no finite prediction for it; it was not applied and the session stands as it was",
    )


def _of_steps(steps: list[Step], num_inputs: int, uses_time: bool) -> Columns:
    """Returns the columns of single steps alone: on the way of nearly every message, so in few operations."""
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


def _of_piece(part: PieceRows, longest: int, admission: Admission) -> Columns:
    """Returns the columns of one part alone, `longest` time steps wide."""
    block, rows = part.piece.block, part.rows
    if rows.shape[1] < longest:
        rows = np.pad(rows, ((0, 0), (0, longest - rows.shape[1])), mode="edge")
    return Columns(
        [],
        [part],
        slots=block.slots[part.entries],
        lengths=part.lengths,
        x=block.x[rows],
        times=admission.run_times(block, part.entries, rows),
        given_times=admission.given_times(block, rows),
    )


def _rows_of(piece: Piece) -> PieceRows | None:
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
    # Past an entry's length its last row stands again: of no effect, and finite.
    ahead = np.minimum(np.arange(int(lengths.max())), lengths[:, None] - 1)  # (n, T)
    rows = block.starts[entries][:, None] + piece.offset + ahead  # (n, T)
    return PieceRows(piece, entries, lengths, rows)


def _hand_back_piece(part: PieceRows, y: Float32s, applied: Flags) -> None:
    block = part.piece.block
    if not block.is_long and applied.all():
        block.y[part.rows[:, 0]] = y[:, 0]
        block.num_applied[part.entries] += 1
        return
    filled = (np.arange(part.rows.shape[1]) < part.lengths[:, None]) & applied[:, None]  # (n, T)
    block.y[part.rows[filled]] = y[:, : part.rows.shape[1]][filled]
    block.num_applied[part.entries[applied]] += part.lengths[applied]
    for entry in part.entries[~applied].tolist():
        block.fail(entry, out_of_range("x_raw"))
