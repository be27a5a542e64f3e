"""CSV series: columns, times, and one line for whatever is wrong."""

import pytest
from streamcell.table import CsvError, SeriesReader, time_after

SECOND_NS = 1_000_000_000


def read(text, inputs=("value",), uses_time=True):
    """The rows of a whole file."""
    reader = SeriesReader("f.csv", inputs, uses_time=uses_time)
    return [row for line in text.splitlines() if (row := reader.feed(line)) is not None]


def test_time_and_values():
    """A naive time is UTC, an offset is obeyed, Unix seconds are times; cells are kept as written."""
    rows = read("timestamp,value\n1970-01-01 00:00:01, 5.50\n1970-01-01T01:00:02+01:00,6\n3.5,7\n\n4,8\n")
    assert [row.time_ns for row in rows] == [SECOND_NS, 2 * SECOND_NS, 3_500_000_000, 4 * SECOND_NS]
    assert [row.values for row in rows] == [(5.5,), (6.0,), (7.0,), (8.0,)]
    assert rows[0].texts == ("5.50",)
    assert [row.line for row in rows] == [2, 3, 4, 6]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("date,b,other,a", (3.0, 1.0)),  # by name, in the model's order, the rest left out
        ("b,a,extra,time", (2.0, 1.0)),  # the time is where its name is
        ("when,p,q", (1.0, 2.0)),  # names that match nothing: in order
    ],
)
def test_columns_are_found_by_name_else_in_order(header, expected):
    """Inputs go by name if the header has them all, else by their order if the count is right."""
    names = header.split(",")
    cells = [str(at) for at in range(len(names))]
    if "time" in names:
        cells = ["1", "2", "x", "0"]
    (row,) = read(f"{header}\n{','.join(cells)}", inputs=("a", "b"))
    assert row.values == expected
    assert row.time_ns == 0


def test_a_file_without_a_header_goes_by_order():
    """A first line that ends in a number is a row."""
    rows = read("2026-01-01,5\n2026-01-02,6")
    assert [row.values for row in rows] == [(5.0,), (6.0,)]


def test_a_model_without_time_takes_a_file_without_time():
    """Only values, or a time that is sent along; a model with time insists on one."""
    (row,) = read("value\n5", uses_time=False)
    assert (row.time_ns, row.time_text) == (None, "")
    (row,) = read("t,value\n9,5", uses_time=False)
    assert row.time_ns == 9 * SECOND_NS
    with pytest.raises(CsvError, match="no time column"):
        read("value\n5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t,value\n1,five", "f.csv: line 2, column value: 'five' is not a number"),
        ("t,value\n1,1_0", "f.csv: line 2, column value: '1_0' is not a number"),
        ("t,value\n1,", "f.csv: line 2, column value: empty, not a number"),
        ("t,value\n1,nan", "f.csv: line 2, column value: nan is not a finite float32 number"),
        ("t,value\n1,-inf", "f.csv: line 2, column value: -inf is not a finite float32 number"),
        ("t,value\n1,1e39", "f.csv: line 2, column value: 1e39 is not a finite float32 number"),
        ("t,value\nsoon,1", "f.csv: line 2, column t: 'soon' is not a time (ISO 8601 or Unix seconds)"),
        ("t,value\n,1", "f.csv: line 2, column t: empty, not a time"),
        ("t,value\n1e99,1", "f.csv: line 2, column t: '1e99' is not a time (ISO 8601 or Unix seconds)"),
        (
            "t,value\n9999-01-01,1",
            "f.csv: line 2, column t: '9999-01-01' is not a time (ISO 8601 or Unix seconds)",
        ),
        ("t,value\n\n2,1\n2,1", "f.csv: line 4, column t: 2 is the time of line 3"),
        ("t,value\n3,1\n2,1", "f.csv: line 3, column t: 2 is before 3 of line 2"),
        ("t,value\n1,2,3", "f.csv: line 2: 3 columns where the header has 2"),
        (
            "t,a,b\n1,2,3",
            "f.csv: line 1: 2 value columns beside the time (t) where the model takes 1 input: value",
        ),
        ('t,value\n1,"2', "f.csv: line 2: not CSV: unexpected end of data"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(text, message):
    """One line names the file, the line, the column and what is wrong there."""
    with pytest.raises(CsvError) as caught:
        read(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("time", "seconds", "expected"),
    [
        ("2026-01-01 23:30:00", 1800, "2026-01-02 00:00:00"),
        ("2026-01-01T23:30:00Z", 1800, "2026-01-02T00:00:00+00:00"),
        ("2026-01-01", 86400, "2026-01-02"),
        ("2026-01-01", 3600, "2026-01-01 01:00:00"),
        ("100", 0.5, "100.5"),
        ("100", 900, "1000"),
    ],
)
def test_times_of_a_forecast_are_written_as_the_file_writes_them(time, seconds, expected):
    """A date stays a date, a count a count."""
    (row,) = read(f"t,value\n{time},1")
    assert time_after(row, seconds) == expected
