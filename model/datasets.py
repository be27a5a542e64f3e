"""Owns where a series comes from: any CSV file with a time column, or the generated Mackey-Glass series.

Knows nothing of networks; imports no torch.
"""

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import SeriesError

TIME_NAMES = ("timestamp", "time", "datetime", "date", "ds")
MIN_ROWS = 3
_DATE_NAMES = ("datetime", "date", "ds")
_SECONDS = re.compile(r"[+-]?\d{1,12}(\.\d{1,12})?")
_COMPACT_DATE = re.compile(r"(19|20)\d{6}")  # 20140701, which is also a number of seconds in 1970
_YEAR_OR_MONTH = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])?")
_DATE_AND_HOUR = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])([01]\d|2[0-3])")
_UNITS = {3: "milliseconds", 6: "microseconds", 9: "nanoseconds"}  # by digits beyond those of seconds
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_INDEX_NAME = re.compile(r"|Unnamed: \d+")  # as pandas writes the index of a table
_OTHER_DELIMITERS = {";": "';'", "\t": "a tab", "|": "'|'"}
_FLOAT32_OVERFLOW = 2.0**128 - 2.0**103  # rounding to float32 gives infinity from here on
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Series:
    """Holds the rows of one series in order of time."""

    names: tuple[str, ...]
    """Names of the F value columns."""
    times_ns: NDArray[np.int64]
    """(N) Unix nanoseconds, strictly increasing."""
    values: NDArray[np.float32]
    """(N, F)."""
    interval_ns: int
    """The usual distance of two rows; 0 where fewer than nine in ten distances are the same."""
    calendar: bool = False
    """Whether the times are dates; false for mere counts."""

    def __len__(self) -> int:
        return len(self.times_ns)

    def rows(self, start: int, stop: int) -> "Series":
        """Returns rows start (included) to stop (excluded)."""
        return replace(self, times_ns=self.times_ns[start:stop], values=self.values[start:stop])


def read_csv(
    path: str | Path, columns: Sequence[str] | None = None, time_column: str | None = None
) -> Series:
    """Reads a series from a CSV file with a header, one time column and one or more columns of numbers.

    The time column is the one named, or the first with a usual name, or the first that begins with a date.
    Its cells are ISO 8601, in UTC if there is no offset, or Unix seconds. `columns` chooses and orders the
    values; by default they are all other columns but the index that pandas writes and further times. Raises
    SeriesError, which names file, line and column, at the first cell that cannot be used. `streamcell
    predict` reads a file in the same way.
    """
    path = Path(path)
    lines = _lines(path)
    header_line, header = next(lines, (1, []))
    header = _checked_header(path, header_line, header)
    times_ns: list[int] = []
    values: list[list[float]] = []
    time_at, value_at, calendar = 0, list[int](), False
    for line, row in lines:
        cells = _without_empty_end(row, len(header))
        if len(cells) != len(header):
            raise SeriesError(f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)}")
        if not values:
            where = f"{path}, line {header_line}"
            time_at = _time_index(where, header, cells, wanted=time_column, values=columns or ())
            value_at = _value_indices(where, header, time_at, columns)
            calendar = not _is_seconds(cells[time_at])
        times_ns.append(_time_ns(path, line, header[time_at], cell=cells[time_at], earlier_ns=times_ns))
        values.append([_number(path, line, header[at], cells[at]) for at in value_at])
    if len(values) < MIN_ROWS:
        raise SeriesError(f"{path}: {len(values)} rows; at least {MIN_ROWS} are needed")
    names, times = tuple(header[at] for at in value_at), np.array(times_ns, np.int64)
    return Series(names, times, np.array(values, np.float32), usual_interval_ns(times), calendar=calendar)


def usual_interval_ns(times_ns: NDArray[np.int64]) -> int:
    """Returns the commonest distance of two rows, 0 where fewer than nine in ten are the same."""
    distances, counts = np.unique(np.diff(times_ns), return_counts=True)
    commonest = int(np.argmax(counts))
    return int(distances[commonest]) if counts[commonest] >= 0.9 * counts.sum() else 0


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the number and the cells of each line that is not blank."""
    reader = csv.reader(io.StringIO(_text(path), newline=None), strict=True)
    num_lines = 0
    try:
        for cells in reader:
            num_lines += 1
            if reader.line_num > num_lines:
                raise SeriesError(f"{path}, line {num_lines}: a quoted cell goes on in the next line")
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                yield num_lines, stripped
    except csv.Error as error:
        raise SeriesError(f"{path}, line {num_lines + 1}: not a CSV text file: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SeriesError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = len((error.object[: error.start] + b".").splitlines())
        raise SeriesError(f"{path}, line {line}: not a CSV text file: not UTF-8 text") from error


def _checked_header(path: Path, line: int, cells: list[str]) -> list[str]:
    where = f"{path}, line {line}"
    if cells and cells[0].startswith("#"):
        raise SeriesError(f"{where}: a comment, where the columns' names are expected")
    for delimiter, name in _OTHER_DELIMITERS.items():
        if len(cells) == 1 and delimiter in cells[0]:
            raise SeriesError(f"{where}: the cells are separated by {name}, where a comma is expected")
    if cells and (all(not cell or _is_number(cell) for cell in cells) or any(map(_is_date, cells))):
        raise SeriesError(
            f"{where}: no header: {','.join(cells)} is a row, where the columns' names are expected"
        )
    header = _without_empty_end(cells, 1)
    for at, name in enumerate(header):
        if not name and at:
            raise SeriesError(f"{where}: column {at + 1} has no name")
        if name in header[:at]:
            raise SeriesError(f"{where}: column {name!r} is there more than once")
    return header


def _without_empty_end(cells: list[str], num_least: int) -> list[str]:
    """Returns the cells without empty ones at the end, which come from a comma at the end of the line."""
    end = len(cells)
    while end > num_least and not cells[end - 1]:
        end -= 1
    return cells[:end]


def _time_index(
    where: str, header: list[str], first: list[str], *, wanted: str | None, values: Sequence[str]
) -> int:
    if wanted is not None:
        if wanted not in header:
            raise SeriesError(f"{where}: no column {wanted!r}; there are {', '.join(header)}")
        return header.index(wanted)
    free = [at for at, name in enumerate(header) if name not in values]
    named = [at for at in free if header[at].lower() in TIME_NAMES]
    dates = [at for at in free if _is_date(first[at])]
    found = named or dates
    if not found and 0 in free and first[0] and not _is_number(first[0]):
        found = [0]  # perhaps a date in another notation, which the refusal of the cell quotes
    if found:
        return found[0]
    raise SeriesError(
        f"{where}: no time column: none is named {', '.join(TIME_NAMES)}, none begins with a date"
    )


def _value_indices(where: str, header: list[str], time_at: int, columns: Sequence[str] | None) -> list[int]:
    if columns is None:
        columns = [name for at, name in enumerate(header) if at != time_at and _is_value_name(name)]
    missing = [name for name in columns if name not in header]
    if missing:
        raise SeriesError(f"{where}: no column {missing[0]!r}; there are {', '.join(header)}")
    if not columns:
        raise SeriesError(f"{where}: no value column beside the time column {header[time_at]!r}")
    return [header.index(name) for name in columns]


def _time_ns(path: Path, line: int, name: str, *, cell: str, earlier_ns: list[int]) -> int:
    time_ns = _parsed_time_ns(cell)
    if time_ns is not None and earlier_ns and time_ns > earlier_ns[-1]:
        return time_ns
    where = f"{path}, line {line}, column {name!r}: {cell!r}"
    if not earlier_ns and _is_ambiguous(cell, name):  # a count may come by such a number later
        raise SeriesError(f"{where} may be Unix seconds or a date; write a date as 2014-07-01")
    if time_ns is None:
        unit = _finer_unit(cell)
        what = "is not a time (ISO 8601 or Unix seconds)"
        raise SeriesError(f"{where} {what if unit is None else f'looks like Unix {unit}; give seconds'}")
    if earlier_ns and time_ns == earlier_ns[-1]:
        raise SeriesError(f"{where} repeats the time of the row before")
    if earlier_ns:
        raise SeriesError(f"{where} is earlier than the row before")
    return time_ns


def _is_ambiguous(cell: str, name: str) -> bool:
    """Returns whether a number may be Unix seconds as well as 2014 or 201407 (of a date), or 2014070123."""
    is_part = name.lower() in _DATE_NAMES and _YEAR_OR_MONTH.fullmatch(cell)
    return bool(is_part or _DATE_AND_HOUR.fullmatch(cell))


def _finer_unit(cell: str) -> str | None:
    """Returns the unit of a number with too many digits for Unix seconds, which have 9 or 10 since 1973."""
    return next((_UNITS[more] for more in _UNITS if len(cell) - more in (9, 10) and cell.isdecimal()), None)


def _parsed_time_ns(cell: str) -> int | None:
    try:
        time_ns = int(Decimal(cell) * 10**9) if _is_seconds(cell) else _iso_ns(cell)
    except ValueError:
        return None
    return time_ns if abs(time_ns) < 2**63 else None


def _is_seconds(cell: str) -> bool:
    return _SECONDS.fullmatch(cell) is not None and _COMPACT_DATE.fullmatch(cell) is None


def _is_date(cell: str) -> bool:
    """Returns whether a cell is a date and cannot be a number as well."""
    return not _is_number(cell) and _parsed_time_ns(cell) is not None


def _is_value_name(name: str) -> bool:
    return _INDEX_NAME.fullmatch(name) is None and name.lower() not in TIME_NAMES


def _iso_ns(cell: str) -> int:
    moment = datetime.fromisoformat(cell.replace("/", "-"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None


def _number(path: Path, line: int, name: str, cell: str) -> float:
    try:
        number = float(cell) if "_" not in cell else None
    except ValueError:
        number = None
    if number is None:
        raise SeriesError(f"{path}, line {line}, column {name!r}: {cell!r} is not a number")
    if not abs(number) < _FLOAT32_OVERFLOW:
        raise SeriesError(f"{path}, line {line}, column {name!r}: {cell!r} is not a finite 32-bit number")
    return number


def mackey_glass(
    num_rows: int,
    *,
    seed: int = 0,
    tau: float = 17.0,
    beta: float = 0.2,
    gamma: float = 0.1,
    exponent: float = 10.0,
    substeps: int = 10,
    discard: int = 1000,
) -> Series:
    """Generates a chaotic series, one row per unit of time, counted as a second.

    dx/dt = β x(t−τ) / (1 + x(t−τ)^n) − γ x(t), equation 4b of Mackey & Glass 1977, "Oscillation and chaos in
    physiological control systems". The history before time 0 is constant, drawn by `seed` from 0.5 to 1.5;
    the first `discard` units of time are left out. Integrated by the classical Runge-Kutta method with
    `substeps` steps per unit; half-way values of the delayed term come from cubic Hermite interpolation,
    of the same order. Raises ValueError where tau is not a whole number of steps.
    """
    delay = round(tau * substeps)
    if delay < 1 or not math.isclose(delay, tau * substeps) or num_rows < 1:
        raise ValueError(
            f"tau {tau} must be a whole number of steps of 1/{substeps}, rows {num_rows} at least 1"
        )
    history = 0.5 + float(np.random.default_rng(seed).random())
    x = [history] * (delay + 1)
    total = (discard + num_rows) * substeps
    _integrate(x, delay, total - substeps, 1.0 / substeps, (beta, gamma, exponent))
    values = np.array(x[delay + discard * substeps :: substeps][:num_rows], np.float32)[:, None]
    times_ns = np.arange(num_rows, dtype=np.int64) * 10**9
    return Series(("value",), times_ns, values, 10**9)


def _integrate(
    x: list[float], delay: int, num_steps: int, dt: float, constants: tuple[float, float, float]
) -> None:
    """Appends num_steps values to x, whose last is the present and whose first is `delay` steps earlier."""
    beta, gamma, exponent = constants
    slope = [0.0] * len(x)
    for now in range(delay, delay + num_steps):
        start, end = x[now - delay], x[now - delay + 1]
        middle = start  # in the history; its corner at time 0 is no part of the smooth curve after it
        if now >= 2 * delay:
            middle = 0.5 * (start + end) + 0.125 * dt * (slope[now - delay] - slope[now - delay + 1])
        source_start, source_middle, source_end = (
            beta * v / (1.0 + v**exponent) for v in (start, middle, end)
        )
        k1 = source_start - gamma * x[now]
        k2 = source_middle - gamma * (x[now] + 0.5 * dt * k1)
        k3 = source_middle - gamma * (x[now] + 0.5 * dt * k2)
        k4 = source_end - gamma * (x[now] + dt * k3)
        slope[now] = k1
        x.append(x[now] + dt / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4))
        slope.append(source_end - gamma * x[now + 1])
