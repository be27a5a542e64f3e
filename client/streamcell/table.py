"""Reads a CSV series line by line: finds the columns of the time and of a model's inputs, converts each row.

Knows nothing of files and event loops. A line that cannot be used raises a CsvError of one line, which names
the file, the line and the column. `python -m model train` reads the same files in the same way.
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

    The time is in the first column with a usual name (`TIME_NAMES`), or if there is none in the first column
    that begins with a date. It is ISO 8601, in UTC if there is no offset, or Unix seconds. The inputs are
    found by name if the header has all of them. Otherwise they are taken in order, if there are as many
    columns beside the time.

    Example:
        reader = SeriesReader("taxi.csv", ["value"], uses_time=True)
        reader.feed("timestamp,value")  # None: the header
        row = reader.feed("2014-07-01 00:00:00,10844")
    """

    def __init__(self, file_name: str, inputs: Sequence[str], *, uses_time: bool) -> None:
        self._file_name = file_name
        self._inputs = tuple(inputs)
        self._uses_time = uses_time
        self._line = 0
        self._header_line = 0
        self._header: tuple[str, ...] = ()
        self._time_at: int | None = None
        self._value_at: tuple[int, ...] = ()
        self._last: SeriesRow | None = None

    @property
    def num_lines(self) -> int:
        """How many lines were read."""
        return self._line

    def feed(self, line: str) -> SeriesRow | None:
        """Returns the row in the next line; None for the header and for blank lines.

        Raises:
            CsvError: the line cannot be used.
        """
        self._line += 1
        cells = self._split(line)
        if not any(cells):
            return None
        if not self._header:
            self._header_line = self._line
            self._header = self._checked_header(cells)
            return None
        cells = _without_empty_end(cells, len(self._header))
        if len(cells) != len(self._header):
            raise self._error(f"{_count(len(cells), 'column')} where the header has {len(self._header)}")
        if self._last is None:
            self._choose_columns(cells)
        return self._row(cells)

    def _split(self, line: str) -> tuple[str, ...]:
        try:
            return tuple(cell.strip() for cell in next(csv.reader([line], strict=True), ()))
        except csv.Error as error:
            raise self._error(f"not CSV: {error}") from None

    def _checked_header(self, cells: tuple[str, ...]) -> tuple[str, ...]:
        if cells[0].startswith("#"):
            raise self._error("a comment, where the columns' names are expected")
        for delimiter, name in _OTHER_DELIMITERS.items():
            if len(cells) == 1 and delimiter in cells[0]:
                raise self._error(f"the cells are separated by {name}, where a comma is expected")
        is_row = all(not cell or _NUMBER.fullmatch(cell) for cell in cells) or any(map(_is_date, cells))
        if is_row:
            raise self._error(f"no header: {','.join(cells)} is a row, where the columns' names are expected")
        header = _without_empty_end(cells, 1)
        for at, name in enumerate(header):
            if not name and at:
                raise self._error(f"column {at + 1} has no name")
            if name in header[:at]:
                raise self._error("is there more than once", name)
        return header

    def _choose_columns(self, first: tuple[str, ...]) -> None:
        header = self._header
        self._time_at = self._find_time(first)
        others = tuple(at for at, name in enumerate(header) if at != self._time_at and _is_value_name(name))
        if set(self._inputs) <= set(header):
            self._value_at = tuple(header.index(name) for name in self._inputs)
        elif len(others) == len(self._inputs):
            self._value_at = others
        else:
            time = "" if self._time_at is None else f" beside the time ({header[self._time_at]})"
            raise self._error(
                f"{_count(len(others), 'value column')}{time} where the model takes"
                f" {_count(len(self._inputs), 'input')}: {', '.join(self._inputs)}",
                line=self._header_line,
            )

    def _find_time(self, first: tuple[str, ...]) -> int | None:
        free = [at for at, name in enumerate(self._header) if name not in self._inputs]
        named = [at for at in free if self._header[at].lower() in TIME_NAMES]
        dates = [at for at in free if _is_date(first[at])]
        found = named or dates
        if not found and 0 in free and self._uses_time and first[0] and not _NUMBER.fullmatch(first[0]):
            found = [0]  # perhaps a date in another notation, which the refusal of the cell quotes
        if not found and self._uses_time:
            raise self._error(
                "no time column, which the model needs: name it " + " or ".join(TIME_NAMES),
                line=self._header_line,
            )
        return found[0] if found else None

    def _row(self, cells: tuple[str, ...]) -> SeriesRow:
        time_text = "" if self._time_at is None else cells[self._time_at]
        row = SeriesRow(
            line=self._line,
            time_text=time_text,
            time_ns=None if self._time_at is None else self._time(time_text, self._header[self._time_at]),
            texts=tuple(cells[at] for at in self._value_at),
            values=tuple(self._number(cells[at], self._header[at]) for at in self._value_at),
        )
        self._last = row
        return row

    def _time(self, text: str, column: str) -> int:
        if self._last is None and _is_ambiguous(text, column):  # a count may come by such a number later
            raise self._error(f"{text!r} may be Unix seconds or a date; write a date as 2014-07-01", column)
        try:
            time_ns = _to_ns(text)
        except (InvalidArgument, ValueError):
            if (unit := _finer_unit(text)) is not None:
                raise self._error(f"{text!r} looks like Unix {unit}; give seconds", column) from None
            what = f"{text!r} is not a time (ISO 8601 or Unix seconds)" if text else "empty, not a time"
            raise self._error(what, column) from None
        last = self._last
        if last is not None and last.time_ns is not None and time_ns <= last.time_ns:
            what = "is the time" if time_ns == last.time_ns else f"is before {last.time_text}"
            raise self._error(f"{text} {what} of line {last.line}", column)
        return time_ns

    def _number(self, text: str, column: str) -> float:
        if not text:
            raise self._error("empty, not a number", column)
        try:
            value = float(text) if "_" not in text else None
        except ValueError:
            value = None
        if value is None:
            raise self._error(f"{text!r} is not a number", column)
        if not math.isfinite(value) or abs(value) >= _FLOAT32_OVERFLOW:
            raise self._error(f"{text} is not a finite float32 number", column)
        return value

    def _error(self, what: str, column: str = "", *, line: int | None = None) -> CsvError:
        place = f"line {line or self._line}" + (f", column {column}" if column else "")
        return CsvError(f"{self._file_name}: {place}: {what}")


def time_after(row: SeriesRow, seconds: float) -> str:
    """Returns the time so many seconds after a row, in the row's own notation; "" if the row has no time."""
    if row.time_ns is None:
        return ""
    text = row.time_text
    if _is_seconds(text):
        return f"{(Decimal(text) + Decimal(repr(seconds))).normalize():f}"
    moment = _to_moment(text) + datetime.timedelta(seconds=seconds)
    is_midnight = moment.time() == datetime.time.min
    if _COMPACT_DATE.fullmatch(text) and is_midnight:
        return f"{moment:%Y%m%d}"
    if len(text) == len("2026-01-01") and is_midnight:
        later = moment.date().isoformat()
    else:
        later = moment.isoformat("T" if "T" in text else " ")
    return later.replace("-", "/", 2) if "/" in text else later


def _is_seconds(text: str) -> bool:
    return _SECONDS.fullmatch(text) is not None and _COMPACT_DATE.fullmatch(text) is None


def _is_ambiguous(text: str, column: str) -> bool:
    """Returns whether a number may be Unix seconds as well as 2014 or 201407 (of a date), or 2014070123."""
    is_part = column.lower() in _DATE_NAMES and _YEAR_OR_MONTH.fullmatch(text)
    return bool(is_part or _DATE_AND_HOUR.fullmatch(text))


def _finer_unit(text: str) -> str | None:
    """Returns the unit of a number with too many digits for Unix seconds, which have 9 or 10 since 1973."""
    return next((_UNITS[more] for more in _UNITS if len(text) - more in (9, 10) and text.isdecimal()), None)


def _to_ns(text: str) -> int:
    if _is_seconds(text):
        return to_time_ns(int(Decimal(text) * 1_000_000_000))
    moment = _to_moment(text)
    return to_time_ns(moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC))


def _to_moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.replace("/", "-"))


def _is_date(text: str) -> bool:
    """Returns whether a text is a date and cannot be a number as well."""
    try:
        return _NUMBER.fullmatch(text) is None and _to_ns(text) is not None
    except (InvalidArgument, ValueError):
        return False


def _is_value_name(name: str) -> bool:
    return _INDEX_NAME.fullmatch(name) is None and name.lower() not in TIME_NAMES


def _without_empty_end(cells: tuple[str, ...], num_least: int) -> tuple[str, ...]:
    """Returns the cells without empty ones at the end, which come from a comma at the end of the line."""
    end = len(cells)
    while end > num_least and not cells[end - 1]:
        end -= 1
    return cells[:end]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
