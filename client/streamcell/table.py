"""A CSV series, line by line: which columns hold the time and a model's inputs, and what each row says.

Pure parsing, without files and loops. Whatever cannot be used is a CsvError of one line that names the file,
the line and the column.
"""

import csv
import dataclasses
import datetime
import math
import re
from collections.abc import Sequence
from decimal import Decimal

from streamcell.convert import to_time_ns
from streamcell.errors import InvalidArgument

TIME_NAMES = ("timestamp", "time", "datetime", "date", "ds")
_SECONDS = re.compile(r"[+-]?\d{1,12}(\.\d{1,12})?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MAX_FLOAT32 = 3.4028235677973366e38  # from here on rounding to float32 gives infinity


class CsvError(Exception):
    """The file cannot be used; the message is one line."""


@dataclasses.dataclass(frozen=True, slots=True)
class SeriesRow:
    """One row: its line in the file, its cells as written, and what they mean."""

    line: int
    time_text: str
    time_ns: int | None
    texts: tuple[str, ...]
    values: tuple[float, ...]


class SeriesReader:
    """Turns the lines of one file into rows for a model.

    The time is in the column with one of the usual names, else in the first one: ISO 8601, UTC where no
    offset is given, or Unix seconds. The inputs are found by name if the header has them all, else taken in
    order if there are as many columns beside the time. A first line of nothing but data is no header.
    """

    def __init__(self, file_name: str, inputs: Sequence[str], *, uses_time: bool) -> None:
        self._file_name = file_name
        self._inputs = tuple(inputs)
        self._uses_time = uses_time
        self._line = 0
        self._header: tuple[str, ...] = ()
        self._time_at: int | None = None
        self._value_at: tuple[int, ...] = ()
        self._last: SeriesRow | None = None

    @property
    def num_lines(self) -> int:
        """How many lines were read."""
        return self._line

    def feed(self, line: str) -> SeriesRow | None:
        """Returns the row that the next line holds; None for the header and for blank lines.

        Raises:
            CsvError: the line cannot be used.
        """
        self._line += 1
        if not line.strip():
            return None
        cells = self._split(line)
        if not self._header:
            is_header = not self._is_row(cells)
            self._choose(cells if is_header else tuple(f"{n}" for n in range(1, len(cells) + 1)), is_header)
            if is_header:
                return None
        if len(cells) != len(self._header):
            raise self._error(f"{_count(len(cells), 'column')} where the header has {len(self._header)}")
        return self._row(cells)

    def _split(self, line: str) -> tuple[str, ...]:
        try:
            return tuple(cell.strip() for cell in next(csv.reader([line], strict=True)))
        except csv.Error as error:
            raise self._error(f"not CSV: {error}") from None

    def _is_row(self, cells: Sequence[str]) -> bool:
        """Tells data from names: the last cell of a row is a number, and a header's never is."""
        return _NUMBER.fullmatch(cells[-1]) is not None

    def _choose(self, header: tuple[str, ...], is_named: bool) -> None:
        self._header = header
        self._time_at = self._find_time(is_named)
        others = tuple(at for at in range(len(header)) if at != self._time_at)
        if is_named and set(self._inputs) <= set(header):
            self._value_at = tuple(header.index(name) for name in self._inputs)
        elif len(others) == len(self._inputs):
            self._value_at = others
        else:
            time = "" if self._time_at is None else f" beside the time ({header[self._time_at]})"
            raise self._error(
                f"{_count(len(others), 'value column')}{time} where the model takes"
                f" {_count(len(self._inputs), 'input')}: {', '.join(self._inputs)}"
            )

    def _find_time(self, is_named: bool) -> int | None:
        names = [name.lower() for name in self._header]
        for name in TIME_NAMES if is_named else ():
            if name in names and self._header[names.index(name)] not in self._inputs:
                return names.index(name)
        is_all_values = len(self._header) == len(self._inputs) or self._header[0] in self._inputs
        if not is_all_values:
            return 0
        if self._uses_time:
            raise self._error("no time column, which the model needs: name it " + " or ".join(TIME_NAMES))
        return None

    def _row(self, cells: tuple[str, ...]) -> SeriesRow:
        time_text = "" if self._time_at is None else cells[self._time_at]
        row = SeriesRow(
            line=self._line,
            time_text=time_text,
            time_ns=None if self._time_at is None else self._time(time_text),
            texts=tuple(cells[at] for at in self._value_at),
            values=tuple(self._number(cells[at], self._header[at]) for at in self._value_at),
        )
        self._check_order(row)
        self._last = row
        return row

    def _time(self, text: str) -> int:
        assert self._time_at is not None  # noqa: S101 - the caller has looked
        try:
            if _SECONDS.fullmatch(text):
                return to_time_ns(int(Decimal(text) * 1_000_000_000))
            moment = datetime.datetime.fromisoformat(text)
            return to_time_ns(moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC))
        except (InvalidArgument, ValueError):
            what = f"{text!r} is not a time (ISO 8601 or Unix seconds)" if text else "empty, not a time"
            raise self._error(what, self._header[self._time_at]) from None

    def _number(self, text: str, column: str) -> float:
        if not text:
            raise self._error("empty, not a number", column)
        try:
            value = float(text) if "_" not in text else None
        except ValueError:
            value = None
        if value is None:
            raise self._error(f"{text!r} is not a number", column)
        if not math.isfinite(value) or abs(value) >= _MAX_FLOAT32:
            raise self._error(f"{text} is not a finite float32 number", column)
        return value

    def _check_order(self, row: SeriesRow) -> None:
        last = self._last
        if last is None or last.time_ns is None or row.time_ns is None or last.time_ns < row.time_ns:
            return
        assert self._time_at is not None  # noqa: S101 - there are times
        what = "is the time" if row.time_ns == last.time_ns else f"is before {last.time_text}"
        raise self._error(f"{row.time_text} {what} of line {last.line}", self._header[self._time_at])

    def _error(self, what: str, column: str = "") -> CsvError:
        place = f"line {self._line}" + (f", column {column}" if column else "")
        return CsvError(f"{self._file_name}: {place}: {what}")


def time_after(row: SeriesRow, seconds: float) -> str:
    """Returns the time so long after a row's, written as the row writes it; "" if it has none."""
    if row.time_ns is None:
        return ""
    text = row.time_text
    if _SECONDS.fullmatch(text):
        return f"{(Decimal(text) + Decimal(repr(seconds))).normalize():f}"
    moment = datetime.datetime.fromisoformat(text) + datetime.timedelta(seconds=seconds)
    if len(text) == len("2026-01-01") and moment.time() == datetime.time.min:
        return moment.date().isoformat()
    return moment.isoformat("T" if "T" in text else " ")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
