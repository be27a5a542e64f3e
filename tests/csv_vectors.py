"""What a CSV series means: small files, each with its rows or with the place and words of its refusal.

The contract of both readers, which may not import each other: `model train` and `streamcell predict`.
"""

import re
from dataclasses import dataclass

import pytest

HOUR_NS = 3600 * 10**9
DAY_NS = 24 * HOUR_NS
JULY_NS = 1_404_172_800 * 10**9  # 2014-07-01 00:00 UTC
HOURS = tuple((JULY_NS + hour * HOUR_NS, (hour + 1.5,)) for hour in range(3))
DAYS = tuple((JULY_NS + day * DAY_NS, (day + 1.5,)) for day in range(3))


@dataclass(frozen=True)
class Vector:
    """One file: its text, the names of its value columns, and what a reader makes of it."""

    name: str
    text: str | bytes
    inputs: tuple[str, ...] = ("value",)
    rows: tuple[tuple[int, tuple[float, ...]], ...] = ()
    """Unix nanoseconds and values; none if the file is refused."""
    line: int = 0
    """The line that the refusal names."""
    column: str = ""
    """The column that the refusal names; "" if a whole line is refused."""
    words: str = ""
    """What the refusal says."""

    @property
    def raw(self) -> bytes:
        """The file as bytes."""
        return self.text if isinstance(self.text, bytes) else self.text.encode()

    def check_refusal(self, message: str) -> None:
        """Checks that a refusal is one line with this vector's line, column and words."""
        assert "\n" not in message
        place = rf"\bline {self.line}\b" + (
            f"[,:] column '?{re.escape(self.column)}'?[: ]" if self.column else ""
        )
        assert re.search(place, message), message
        assert self.words in message


def read(name, text, rows=HOURS, inputs=("value",)):
    """A file that is read."""
    return Vector(name, text, inputs, rows=rows)


def refused(name, text, line, column="", words=""):
    """A file that is refused."""
    return Vector(name, text, line=line, column=column, words=words)


def series(times, header="timestamp,value", end="\n"):
    """A file with these times and the values 1.5, 2.5, ..."""
    lines = [f"{time},{number + 1.5}" for number, time in enumerate(times)]
    return end.join([header, *lines, ""])


PLAIN = series(f"2014-07-01 0{hour}:00:00" for hour in range(3))
BARE = PLAIN.split("\n", 1)[1]
DATES = ("2014-07-01", "2014-07-02", "2014-07-03")
SECONDS = (1_404_172_800, 1_404_176_400, 1_404_180_000)


def indexed(*index):
    """The plain file with these cells before each line."""
    return "".join(f"{cell},{line}\n" for cell, line in zip(index, PLAIN.splitlines(), strict=True))


VECTORS = [
    read("plain", PLAIN),
    # Encoding and ends of lines.
    read("byte order mark", "\ufeff" + PLAIN),
    read("crlf", PLAIN.replace("\n", "\r\n")),
    read("cr", PLAIN.replace("\n", "\r")),
    read("no end of the last line", PLAIN.rstrip("\n")),
    refused("latin-1", PLAIN.encode() + b"2014-07-01 03:00:00,\xe4\n", 5, words="not UTF-8 text"),
    refused("utf-16", PLAIN.encode("utf-16"), 1, words="not UTF-8 text"),
    refused("byte order mark cut off", b"\xef\xbb", 1, words="not UTF-8 text"),
    # Blank lines and commas at the end.
    read("blank lines at the end", PLAIN + "\n   \n,\n"),
    read("blank lines at the start", "\n\n" + PLAIN),
    read("blank lines between", PLAIN.replace("\n", "\n\n")),
    read("comma at the end", PLAIN.replace("\n", ",\n")),
    read("comma at the end of the rows", "timestamp,value\n" + BARE.replace("\n", ",\n")),
    read("comma at the end of the header", "timestamp,value,\n" + BARE),
    refused("a cell too many", PLAIN.replace("2.5", "2.5,7"), 3),
    refused("a cell too few", PLAIN.replace(",2.5", ""), 3),
    # Quotes and delimiters.
    read("quotes", PLAIN.replace("1.5", '"1.5"').replace("timestamp", '"timestamp"')),
    read("spaces around cells", PLAIN.replace(",", " , ")),
    refused("quotes that do not end", PLAIN.replace("2.5", '"2.5'), 3),
    refused("quotes that end in the next line", PLAIN.replace("2.5", '"2.5\n"'), 3),
    refused("semicolon", PLAIN.replace(",", ";"), 1, words="separated by ';', where a comma is expected"),
    refused("tab", PLAIN.replace(",", "\t"), 1, words="separated by a tab, where a comma is expected"),
    refused("bar", PLAIN.replace(",", "|"), 1, words="separated by '|', where a comma is expected"),
    # The header.
    refused("no header", BARE, 1, words="no header"),
    refused("no header, Unix seconds", series(SECONDS).split("\n", 1)[1], 1, words="no header"),
    refused("comment", "# made by a logger\n" + PLAIN, 1, words="a comment"),
    refused("a name twice", "date,a,a\n2014-07-01,1,2\n", 1, "a", "is there more than once"),
    refused("no name in the middle", PLAIN.replace(",", ",,"), 1, words="column 2 has no name"),
    read("index of pandas", indexed("", 0, 1, 2)),
    read("index of pandas, written again", indexed(",Unnamed: 0", "0,0", "1,1", "2,2")),
    read("times as the index of pandas", PLAIN.replace("timestamp", "")),
    # Which column is the time.
    read("name in capitals", PLAIN.replace("timestamp", "DateTime")),
    read("unusual name", PLAIN.replace("timestamp", "when")),
    read("two times", series([f"{day},{at}" for at, day in enumerate(DATES)], "date,time,value"), DAYS),
    read(
        "time in the middle",
        "a,when,b\n1,2014-07-01,2\n3,2014-07-02,4\n5,2014-07-03,6\n",
        tuple((time_ns, (2.0 * at + 1, 2.0 * at + 2)) for at, (time_ns, _) in enumerate(DAYS)),
        inputs=("a", "b"),
    ),
    refused("no time, and no number", "reading,value\n1,x\n2,2.5\n3,3.5\n", 1, words="no time column"),
    refused("no time", "reading,value\n1,1.5\n2,2.5\n3,3.5\n", 1, words="no time column"),
    # How times are written.
    read("T and Z", PLAIN.replace(" ", "T").replace("0,", "0Z,")),
    read("offsets", series(f"2014-07-01 0{hour + 2}:00:00+02:00" for hour in range(3))),
    read("nanoseconds", PLAIN.replace(":00:00,", ":00:00.000000000,")),
    read("slashes", PLAIN.replace("-", "/").replace(":00:00", ":00")),
    read("days", series(DATES, "date,value"), DAYS),
    read("compact days", series(("20140701", "20140702", "20140703"), "date,value"), DAYS),
    read("Unix seconds", series(SECONDS)),
    read(
        "parts of Unix seconds",
        series(("1.000000001", "+2", "3.5")),
        ((1_000_000_001, (1.5,)), (2_000_000_000, (2.5,)), (3_500_000_000, (3.5,))),
    ),
    refused("Unix ms", series(time * 10**3 for time in SECONDS), 2, "timestamp", "like Unix milliseconds"),
    refused("Unix us", series(time * 10**6 for time in SECONDS), 2, "timestamp", "like Unix microseconds"),
    refused("Unix ns", series(time * 10**9 for time in SECONDS), 2, "timestamp", "like Unix nanoseconds"),
    refused("no compact day", series(("20140701", "20140732"), "date,value"), 3, "date", "is not a time"),
    refused("years", series((2012, 2013), "date,value"), 2, "date", "may be Unix seconds or a date"),
    refused("months", series((201401, 201402), "date,value"), 2, "date", "may be Unix seconds or a date"),
    refused("dates with an hour", series((2014070100, 2014070101)), 2, "timestamp", "may be Unix seconds"),
    read(
        "counts past 1900 in a date column",
        series((1899, 1900, 1901), "date,value"),
        tuple((count * 10**9, (count - 1899 + 1.5,)) for count in (1899, 1900, 1901)),
    ),
    refused("early Unix ms", series((946_684_800_000,)), 2, "timestamp", "like Unix milliseconds"),
    refused("seconds with an exponent", series(("1e9", "2e9", "3e9")), 2, "timestamp", "is not a time"),
    refused("month first", series(("07/01/2014", "07/02/2014"), "date,value"), 2, "date", "is not a time"),
    refused("day first", series(("01.07.2014 00:00",), "Date Time,value"), 2, "Date Time", "is not a time"),
    refused("no time in a row", PLAIN.replace("2014-07-01 01:00:00", ""), 3, "timestamp", "not a time"),
    refused("far future", series(("9999-01-01",)), 2, "timestamp", "is not a time"),
    # The order of times.
    refused("the same time", series((*DATES, DATES[2])), 5, "timestamp"),
    refused("an earlier time", series((DATES[1], DATES[0], DATES[2])), 3, "timestamp"),
    refused("the same instant", series((DATES[0], f"{DATES[0]}T02:00+02:00")), 3, "timestamp"),
    # Numbers.
    read(
        "largest float32",
        PLAIN.replace("1.5", "3.4028235e38"),
        ((JULY_NS, (3.4028234663852886e38,)), *HOURS[1:]),
    ),
    refused("beyond float32", PLAIN.replace("2.5", "3.4028236e38"), 3, "value", "is not a finite"),
    refused("infinity", PLAIN.replace("2.5", "-inf"), 3, "value", "is not a finite"),
    refused("NaN", PLAIN.replace("2.5", "NaN"), 3, "value", "is not a finite"),
    refused("empty", PLAIN.replace("2.5", ""), 3, "value", "not a number"),
    refused("text", PLAIN.replace("2.5", "n/a"), 3, "value", "is not a number"),
    refused("underscore", PLAIN.replace("2.5", "1_000"), 3, "value", "is not a number"),
    refused("thousands", PLAIN.replace("2.5", '"1,234.5"'), 3, "value", "is not a number"),
    refused("decimal comma", PLAIN.replace("2.5", '"2,5"'), 3, "value", "is not a number"),
    # The first fault counts.
    refused("number, then time", PLAIN.replace("2.5", "x") + "2014-07-01,9\n", 3, "value", "not a number"),
    refused("time, then number", PLAIN.replace("07-01 01", "07-01 00") + "2014-07-02,x\n", 3, "timestamp"),
]  # fmt: skip

each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
