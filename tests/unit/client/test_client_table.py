"""The reader of `streamcell predict`: columns, times, and one line for each thing that is wrong."""

import os

import numpy as np
import pytest
from streamcell.lines import read_lines
from streamcell.table import CsvError, SeriesReader, time_after

from tests.csv_vectors import each_vector

SECOND_NS = 1_000_000_000


def read(text, inputs=("value",), uses_time=True):
    """Returns the rows of a whole file."""
    reader = SeriesReader("f.csv", inputs, uses_time=uses_time)
    return [row for line in text.splitlines() if (row := reader.feed(line)) is not None]


async def read_file(path, inputs):
    """Returns the rows of a file as the command reads them: each line as it comes."""
    reader = SeriesReader(str(path), inputs, uses_time=True)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        rows = [row async for line in read_lines(descriptor) if (row := reader.feed(line)) is not None]
    except UnicodeDecodeError:  # the pipe makes the same words of it
        raise CsvError(f"{path}: line {reader.num_lines + 1}: not UTF-8 text") from None
    finally:
        os.close(descriptor)
    return rows


class TestColumns:
    """The columns of the time and of the inputs are found."""

    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            ("date,b,other,a", (3.0, 1.0)),  # by name, in the model's order, the rest left out
            ("b,a,extra,time", (2.0, 1.0)),  # the time is where its name is
            ("date,p,q", (1.0, 2.0)),  # names that match nothing: in order
        ],
    )
    def test_columns_are_found_by_name_or_in_order(self, header, expected):
        """Inputs are found by name if the header has all of them, and otherwise taken in order."""
        names = header.split(",")
        cells = [str(at) for at in range(len(names))]
        if "time" in names:
            cells = ["1", "2", "x", "0"]
        (row,) = read(f"{header}\n{','.join(cells)}", inputs=("a", "b"))
        assert row.values == expected
        assert row.time_ns == 0

    @pytest.mark.parametrize("text", ["2026-01-01,5\n2026-01-02,6", "5\n6"])
    def test_a_file_without_a_header_is_refused(self, text):
        """A first row is never taken for a header, nor for data under unknown names."""
        with pytest.raises(CsvError, match=r"line 1: no header: \S+5 is a row|no header: 5 is a row"):
            read(text, uses_time=False)

    def test_a_model_without_time_takes_a_file_without_time(self):
        """The file has values alone, or a time that is sent, too; a model with time needs a time."""
        (row,) = read("value\n5", uses_time=False)
        assert (row.time_ns, row.time_text) == (None, "")
        (row,) = read("time,value\n9,5", uses_time=False)
        assert row.time_ns == 9 * SECOND_NS
        with pytest.raises(CsvError, match="no time column"):
            read("value\n5")


class TestRows:
    """Rows are read, or refused with their place."""

    def test_time_and_values(self):
        """A naive time is UTC, an offset is obeyed, Unix seconds are times; cells are kept as written."""
        rows = read("timestamp,value\n1970-01-01 00:00:01, 5.50\n1970-01-01T01:00:02+01:00,6\n3.5,7\n\n4,8\n")
        assert [row.time_ns for row in rows] == [SECOND_NS, 2 * SECOND_NS, 3_500_000_000, 4 * SECOND_NS]
        assert [row.values for row in rows] == [(5.5,), (6.0,), (7.0,), (8.0,)]
        assert rows[0].texts == ("5.50",)
        assert [row.line for row in rows] == [2, 3, 4, 6]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("time,value\n1,five", "line 2, column value: 'five' is not a number"),
            ("time,value\n1,1_0", "line 2, column value: '1_0' is not a number"),
            ("time,value\n1,", "line 2, column value: empty, not a number"),
            ("time,value\n1,nan", "line 2, column value: nan is not a finite float32 number"),
            ("time,value\n1,-inf", "line 2, column value: -inf is not a finite float32 number"),
            ("time,value\n1,1e39", "line 2, column value: 1e39 is not a finite float32 number"),
            ("time,value\nsoon,1", "line 2, column time: 'soon' is not a time (ISO 8601 or Unix seconds)"),
            ("time,value\n,1", "line 2, column time: empty, not a time"),
            ("time,value\n1e99,1", "line 2, column time: '1e99' is not a time (ISO 8601 or Unix seconds)"),
            (
                "time,value\n9999-01-01,1",
                "line 2, column time: '9999-01-01' is not a time (ISO 8601 or Unix seconds)",
            ),
            ("time,value\n\n2,1\n2,1", "line 4, column time: 2 is the time of line 3"),
            ("time,value\n3,1\n2,1", "line 3, column time: 2 is before 3 of line 2"),
            ("time,value\n1,2,3", "line 2: 3 columns where the header has 2"),
            (
                "time,a,b\n1,2,3",
                "line 1: 2 value columns beside the time (time) where the model takes 1 input: value",
            ),
            ('t,value\n1,"2', "line 2: not CSV: unexpected end of data"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_said_with_its_place(self, text, message):
        """One line names the file, the line, the column and what is wrong there."""
        with pytest.raises(CsvError) as caught:
            read(text)
        assert str(caught.value) == f"f.csv: {message}"

    @each_vector
    async def test_a_file_means_the_same_as_in_training(self, tmp_path, vector):
        """The rows, or the refusal's line, column and words, are those that the model's reader has, too."""
        path = tmp_path / "series.csv"
        path.write_bytes(vector.raw)
        if vector.rows:
            rows = await read_file(path, vector.inputs)
            assert tuple((row.time_ns, tuple(np.float32(row.values).tolist())) for row in rows) == vector.rows
        else:
            with pytest.raises(CsvError) as caught:
                await read_file(path, vector.inputs)
            vector.check_refusal(str(caught.value))


class TestTimeAfter:
    """The times of a forecast are written as the file writes its times."""

    @pytest.mark.parametrize(
        ("time", "seconds", "expected"),
        [
            ("2026-01-01 23:30:00", 1800, "2026-01-02 00:00:00"),
            ("2026-01-01T23:30:00Z", 1800, "2026-01-02T00:00:00+00:00"),
            ("2026-01-01", 86400, "2026-01-02"),
            ("2026-01-01", 3600, "2026-01-01 01:00:00"),
            ("2026/01/01 23:30", 1800, "2026/01/02 00:00:00"),
            ("2026/01/01", 86400, "2026/01/02"),
            ("20260131", 86400, "20260201"),
            ("20260131", 3600, "2026-01-31 01:00:00"),
            ("100", 0.5, "100.5"),
            ("100", 900, "1000"),
        ],
    )
    def test_times_of_a_forecast_are_written_as_the_file_writes_them(self, time, seconds, expected):
        """A date stays a date, a count a count."""
        (row,) = read(f"time,value\n{time},1")
        assert time_after(row, seconds) == expected
