"""Checks the values in requests of both APIs. Each error names the field at fault.

Knows a model's inputs. Does not know messages, sessions or when a step runs.
"""

import math
import struct
from collections.abc import Sequence

import numpy as np

from service import errors
from service.arrays import Float32s, Int64s
from service.engine.engine import Engine
from service.engine.progress import MAX_TIME_NS
from service.errors import StreamcellError
from service.runtime.manifest import Variable

LARGEST_INDEX = (1 << 63) - 1
"""The largest step index."""


def row(engine: Engine, values: Sequence[float]) -> bytes:
    """Returns one input row in the engine's form: F little-endian float32.

    Raises:
        StreamcellError: INVALID_ARGUMENT, there are fewer or more values than inputs, or one is not finite.
    """
    values = values[:]  # a list: reading one is several times as fast as reading a message's field
    try:
        packed = engine.row.pack(*values)
    except struct.error:
        raise wrong_width("x", len(values), engine) from None
    # A float64 sum of float32 values cannot overflow: the sum is finite if and only if every value is.
    if not math.isfinite(sum(values)):
        column = next(at for at, value in enumerate(values) if not math.isfinite(value))
        raise _not_finite("x", values[column], engine, row=0, column=column)
    return packed


def finite(engine: Engine, field: str, x: Float32s) -> Float32s:
    """Returns input rows [N, F] unchanged.

    Raises:
        StreamcellError: INVALID_ARGUMENT, a value is not finite.
    """
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0].tolist()
        raise _not_finite(field, float(x[row, column]), engine, row=row, column=column)
    return x


def time(time_ns: int, field: str = "time_ns") -> int:
    """Returns a time in Unix ns unchanged.

    Raises:
        StreamcellError: INVALID_ARGUMENT, the time is out of range.
    """
    if not -MAX_TIME_NS <= time_ns <= MAX_TIME_NS:
        raise errors.invalid_argument(field, f"{time_ns} is beyond {MAX_TIME_NS} ns before or after 1970")
    return time_ns


def times(field: str, raw: bytes, values: Sequence[int], num_rows: int) -> Int64s | None:
    """Returns one time per row, in Unix ns, from `raw` (packed) or `values`; None if neither has any.

    Raises:
        StreamcellError: INVALID_ARGUMENT, both have times, there is not one per row, or one is out of range.
    """
    if raw and values:
        raise errors.invalid_argument(field, "times are given twice, packed and as a list")
    if not raw and not values:
        return None
    given = _unpacked(field, raw, "<i8", num_rows) if raw else np.array(values, np.int64)
    if len(given) != num_rows:
        raise errors.invalid_argument(field, f"{len(given)} times for {num_rows} steps")
    for extreme in (given.min(), given.max()) if num_rows else ():
        time(int(extreme), field)
    return given.astype(np.int64)


def column(field: str, raw: bytes, kind: str, count: int) -> Int64s:
    """Returns `count` packed integers of `kind` ("<u4", "<u8") as int64.

    Raises:
        StreamcellError: INVALID_ARGUMENT, there are fewer or more than `count`, or a number is beyond int64.
    """
    found = _unpacked(field, raw, kind, count)
    if len(found) and int(found.max()) > LARGEST_INDEX:
        raise errors.invalid_argument(field, "a number is beyond 2**63 - 1")
    return found.astype(np.int64)


def wrong_width(field: str, got: int, engine: Engine) -> StreamcellError:
    """Returns the error for `got` values if they are no whole number of the model's input rows."""
    inputs = engine.manifest.inputs
    message = f"{got} values; {engine.name}/{engine.version} takes {len(inputs)} a step: {names(inputs)}"
    return errors.invalid_argument(field, message)


def names(variables: tuple[Variable, ...]) -> str:
    """Returns the names of variables with their units, for an error's message."""
    return ", ".join(f"{each.name} ({each.unit})" if each.unit else each.name for each in variables)


def _unpacked(field: str, raw: bytes, kind: str, count: int) -> Int64s:
    if len(raw) != count * np.dtype(kind).itemsize:
        size = np.dtype(kind).itemsize
        raise errors.invalid_argument(field, f"{len(raw)} bytes; {count} values of {size} bytes are needed")
    return np.frombuffer(raw, kind)


def _not_finite(field: str, value: float, engine: Engine, *, row: int, column: int) -> StreamcellError:
    name = engine.manifest.inputs[column].name
    return errors.invalid_argument(field, f"row {row}, {name!r} is {value}: every value must be finite")
