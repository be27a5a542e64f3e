"""Owns where a series comes from: any CSV file with a time column, or the generated Mackey-Glass series.

Knows nothing of networks; imports no torch.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import SeriesError

TIME_NAMES = ("timestamp", "time", "datetime", "date", "ds")
MIN_ROWS = 3
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
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

    The time column is the one named, or one with a usual name, or the first whose first row is a date; its
    cells are ISO 8601 (UTC where no offset is given) or Unix seconds. `columns` chooses and orders the
    values; by default all others. Raises SeriesError, which names file, line and column, at the first cell
    that cannot be used.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = csv.reader(stream)
            header = [name.strip() for name in next(lines, [])]
            rows = list(_numbered_rows(path, lines, len(header)))
    except OSError as error:
        raise SeriesError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SeriesError(f"{path}: not a CSV text file: {error}") from error
    if len(rows) < MIN_ROWS:
        raise SeriesError(f"{path}: {len(rows)} rows; at least {MIN_ROWS} are needed")
    time_at = _time_index(path, header, rows[0][1], time_column)
    value_at = _value_indices(path, header, time_at, columns)
    times_ns = _times(path, header[time_at], [(line, cells[time_at]) for line, cells in rows])
    values = np.empty((len(rows), len(value_at)), np.float32)
    for row, (line, cells) in enumerate(rows):
        for column, index in enumerate(value_at):
            values[row, column] = _number(path, line, header[index], cells[index])
    names = tuple(header[index] for index in value_at)
    return Series(
        names, times_ns, values, usual_interval_ns(times_ns), calendar=not _is_number(rows[0][1][time_at])
    )


def usual_interval_ns(times_ns: NDArray[np.int64]) -> int:
    """Returns the commonest distance of two rows, 0 where fewer than nine in ten are the same."""
    distances, counts = np.unique(np.diff(times_ns), return_counts=True)
    commonest = int(np.argmax(counts))
    return int(distances[commonest]) if counts[commonest] >= 0.9 * counts.sum() else 0


def _numbered_rows(
    path: Path, lines: Iterator[list[str]], num_columns: int
) -> Iterator[tuple[int, list[str]]]:
    reader = lines
    for cells in reader:
        line = reader.line_num  # type: ignore[attr-defined]
        if not cells:
            continue
        if len(cells) != num_columns:
            raise SeriesError(f"{path}, line {line}: {len(cells)} cells, but the header has {num_columns}")
        yield line, cells


def _time_index(path: Path, header: list[str], first: list[str], wanted: str | None) -> int:
    if wanted is not None:
        if wanted not in header:
            raise SeriesError(f"{path}: no column {wanted!r}; there are {', '.join(header)}")
        return header.index(wanted)
    for index, name in enumerate(header):
        if name.lower() in TIME_NAMES:
            return index
    for index, cell in enumerate(first):
        if not _is_number(cell) and _parsed_time_ns(cell) is not None:
            return index
    raise SeriesError(
        f"{path}: no time column: none is named {', '.join(TIME_NAMES)}, none begins with a date"
    )


def _value_indices(path: Path, header: list[str], time_at: int, columns: Sequence[str] | None) -> list[int]:
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise SeriesError(f"{path}, line 1: column {min(repeated)!r} is there more than once")
    if columns is None:
        columns = [name for index, name in enumerate(header) if index != time_at]
    missing = [name for name in columns if name not in header]
    if missing:
        raise SeriesError(f"{path}: no column {missing[0]!r}; there are {', '.join(header)}")
    if not columns:
        raise SeriesError(f"{path}: no value column beside the time column {header[time_at]!r}")
    return [header.index(name) for name in columns]


def _times(path: Path, name: str, cells: list[tuple[int, str]]) -> NDArray[np.int64]:
    times_ns = np.empty(len(cells), np.int64)
    for row, (line, cell) in enumerate(cells):
        time_ns = _parsed_time_ns(cell)
        if time_ns is None:
            raise SeriesError(f"{path}, line {line}, column {name!r}: {cell!r} is not a time")
        if row and time_ns == times_ns[row - 1]:
            raise SeriesError(
                f"{path}, line {line}, column {name!r}: {cell!r} repeats the time of the row before"
            )
        if row and time_ns < times_ns[row - 1]:
            raise SeriesError(
                f"{path}, line {line}, column {name!r}: {cell!r} is earlier than the row before"
            )
        times_ns[row] = time_ns
    return times_ns


def _parsed_time_ns(cell: str) -> int | None:
    cell = cell.strip()
    try:
        time_ns = int(Decimal(cell) * 10**9) if _is_number(cell) else _iso_ns(cell)
    except (ValueError, InvalidOperation, OverflowError):
        return None
    return time_ns if abs(time_ns) < 2**63 else None


def _iso_ns(cell: str) -> int:
    moment = datetime.fromisoformat(cell.replace("/", "-"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _number(path: Path, line: int, name: str, cell: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        raise SeriesError(f"{path}, line {line}, column {name!r}: {cell!r} is not a number") from None
    if not abs(number) <= _MAX_FLOAT32:
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
