"""Converts what callers pass in to what messages hold, and back.

Rows are sequences of numbers, or anything with a buffer of numbers (array.array, numpy, torch on the CPU).
Times are aware datetimes or whole Unix nanoseconds. A value that cannot be converted raises InvalidArgument,
which names the argument. Knows nothing of calls.
"""

import dataclasses
import datetime
import operator
import sys
from array import array
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeAlias, cast

from streamcell.errors import invalid
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.values import Limits, Model, Prediction, SessionInfo, Variable

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in collections.abc from Python 3.12

Time: TypeAlias = datetime.datetime | int
Row: TypeAlias = "Sequence[float] | Buffer"
TimedRow: TypeAlias = tuple[Time, Row]
Item: TypeAlias = "Row | TimedRow"
Rows: TypeAlias = AsyncIterable[Item] | Iterable[Item]

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_MAX_INT64 = (1 << 63) - 1


@dataclasses.dataclass(frozen=True, slots=True)
class History:
    """Rows in columns: `x` is [num_steps, num_inputs] float32, `time` [num_steps] int64 ns or None."""

    x: "array[float]"
    time: "array[int] | None"
    num_steps: int

    def between(self, start: int, stop: int) -> "History":
        """Returns the steps from `start` up to before `stop`."""
        width = len(self.x) // max(self.num_steps, 1)
        time = self.time[start:stop] if self.time is not None else None
        return History(self.x[start * width : stop * width], time, stop - start)

    def packed(self) -> tuple[bytes, bytes]:
        """Returns packed little-endian values and times (b"" if there are none)."""
        return _little_endian(self.x), _little_endian(self.time) if self.time is not None else b""

    @property
    def step_bytes(self) -> int:
        """The bytes that one step takes in a message."""
        return 4 * len(self.x) // max(self.num_steps, 1) + (0 if self.time is None else 8)


def to_time_ns(time: Time) -> int:
    """Returns Unix nanoseconds.

    Raises:
        InvalidArgument: the datetime has no time zone, the value is no time, or it does not fit into int64.
    """
    if isinstance(time, datetime.datetime):
        if time.utcoffset() is None:
            raise invalid("time", f"{time} has no time zone: give an aware datetime or Unix nanoseconds")
        time_ns = (time - _EPOCH) // _MICROSECOND * 1000
    else:
        time_ns = _to_int(time)
    if not -_MAX_INT64 <= time_ns <= _MAX_INT64:
        raise invalid("time", f"{time} does not fit Unix nanoseconds in 64 bits")
    return time_ns


def to_x(row: Row, name: str = "x") -> "array[float]":
    """Returns a row as float32 values.

    Raises:
        InvalidArgument: the row is not a sequence of numbers.
    """
    if isinstance(row, str | bytes | bytearray):
        raise invalid(name, f"a row is a sequence of numbers, not {type(row).__name__}")
    try:
        return array("f", cast("Iterable[float]", row))
    except OverflowError:
        raise invalid(name, "a value is too large for float32") from None
    except (TypeError, ValueError) as error:
        raise invalid(name, f"a row is a sequence of numbers: {error}") from None


def to_step(item: Item) -> "tuple[int | None, array[float]]":
    """Returns the time (None if absent) and the values of one item in a stream of rows."""
    if isinstance(item, tuple) and len(item) == 2 and hasattr(item[1], "__len__"):
        time, row = item
        return to_time_ns(cast("Time", time)), to_x(cast("Row", row))
    return None, to_x(cast("Row", item))


async def each(rows: Rows) -> AsyncIterator[Item]:
    """Yields the items of an iterable, asynchronous or not."""
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield row
    else:
        for item in rows:
            yield item


def to_history(rows: "Iterable[Row] | Buffer", times: Iterable[Time] | None) -> History:
    """Returns a history in columns.

    Raises:
        InvalidArgument: the rows are not sequences of numbers, or differ in length, or their number is not
            the number of times.
    """
    x, num_steps = _from_buffer(rows) or _from_rows(cast("Iterable[Row]", rows))
    time = None if times is None else array("q", map(to_time_ns, times))
    if time is not None and len(time) != num_steps:
        raise invalid("times", f"{len(time)} times for {num_steps} rows")
    return History(x, time, num_steps)


def to_single(x: "array[float]", time_ns: int | None) -> History:
    """Returns a history of one step."""
    return History(x, None if time_ns is None else array("q", (time_ns,)), 1)


def to_rows(y: Sequence[float], num_rows: int) -> tuple[tuple[float, ...], ...]:
    """Returns the rows of a flat sequence that has one row after another."""
    width = len(y) // num_rows
    return tuple(tuple(y[row * width : (row + 1) * width]) for row in range(num_rows))


def to_prediction(reply: pb.StepResponse | pb.PrimeResponse) -> Prediction:
    """Returns the prediction in a reply."""
    return Prediction(reply.step_index, tuple(reply.y), reply.num_durable_steps)


def to_limits(own: Limits, server: pb.Limits) -> Limits:
    """Returns the caller's limits, bounded by the server's."""
    return own.within(
        window_steps=server.num_replies_kept,  # a reply that the server forgot cannot be asked for again
        message_steps=server.max_message_steps,
        message_bytes=server.max_message_bytes,
    )


def to_session_info(session: pb.Session) -> SessionInfo:
    """Returns what a message says about a session."""
    return SessionInfo(**{
        field.name: getattr(session, field.name) for field in dataclasses.fields(SessionInfo)
    })  # fmt: skip


def to_model(model: pb.Model) -> Model:
    """Returns what a message says about a model."""
    return Model(
        name=model.name,
        version=model.version,
        description=model.description,
        inputs=tuple(map(_to_variable, model.inputs)),
        outputs=tuple(map(_to_variable, model.outputs)),
        future=tuple(map(_to_variable, model.future)),
        uses_time=model.uses_time,
        step_interval_seconds=model.step_interval_seconds,
        state_bytes=model.state_bytes,
        num_sessions=model.num_sessions,
        retiring=model.status == pb.MODEL_STATUS_RETIRING,
        manifest_json=model.manifest_json,
    )


def _to_variable(variable: pb.Variable) -> Variable:
    return Variable(
        name=variable.name,
        unit=variable.unit,
        target=variable.target,
        role=variable.role,
        quantile=variable.quantile,
    )


def _to_int(time: object) -> int:
    try:
        if not isinstance(time, bool):
            return operator.index(cast("SupportsIndex", time))
    except TypeError:
        pass
    raise invalid("time", f"{time!r} is neither an aware datetime nor whole Unix nanoseconds")


def _from_buffer(rows: "Iterable[Row] | Buffer") -> "tuple[array[float], int] | None":
    """Returns the values and the number of rows of a two-dimensional buffer; None for anything else."""
    try:
        view = memoryview(cast("Buffer", rows))
    except (TypeError, ValueError):
        return None
    if view.ndim != 2:
        return None
    if view.format == "f":
        x = array("f")
        x.frombytes(view.tobytes())
        return x, view.shape[0] if view.shape else 0
    try:
        return array("f", chain.from_iterable(cast("list[list[float]]", view.tolist()))), len(view)
    except (TypeError, NotImplementedError):  # a format that memoryview cannot read
        return None


def _from_rows(rows: Iterable[Row]) -> "tuple[array[float], int]":
    x = array("f")
    num_steps = width = 0
    for row in rows:
        values = to_x(row, f"rows[{num_steps}]")
        if num_steps and len(values) != width:
            raise invalid(f"rows[{num_steps}]", f"{len(values)} values where the rows before have {width}")
        width = len(values)
        x.extend(values)
        num_steps += 1
    return x, num_steps


def _little_endian(values: "array[Any]") -> bytes:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()
