"""Reading a series from CSV, and the generated one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.datasets import mackey_glass, read_csv
from model.errors import SeriesError
from tests.csv_vectors import each_vector

GOOD = "timestamp,value\n2024-01-01 00:00:00,1\n2024-01-01 00:30:00,2.5\n2024-01-01 01:00:00,-3e2\n"


@pytest.fixture
def csv_of(tmp_path):
    """Writes text to a file and returns the file's path."""

    def write(text: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / "series.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_reads_times_and_values(csv_of):
    """Dates become Unix nanoseconds in UTC, cells become floats, and the interval is found."""
    series = read_csv(csv_of(GOOD))
    assert series.names == ("value",)
    assert series.times_ns.tolist() == [1704067200 * 10**9 + i * 1800 * 10**9 for i in range(3)]
    assert series.values.tolist() == [[1.0], [2.5], [-300.0]]
    assert series.values.dtype == np.float32
    assert series.interval_ns == 1800 * 10**9
    assert series.calendar
    assert len(series) == 3
    assert series.rows(1, 3).values.tolist() == [[2.5], [-300.0]]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD + "\n\n",
        GOOD.replace(" 0", "T0"),
        GOOD.replace(":00,", ":00Z,"),
        GOOD.replace("2024-01-01", "2024/01/01"),
        GOOD.replace(" 00:00:00,", " 02:00:00+02:00,"),
        GOOD.replace(" ", "\u0020").replace("timestamp", "Date"),
        GOOD.replace("timestamp", "when"),
    ],
    ids=[
        "mark",
        "crlf",
        "blank lines",
        "T",
        "Z",
        "slashes",
        "offset",
        "name in capitals",
        "found by its dates",
    ],
)
def test_reads_usual_variants(csv_of, text):
    """Usual ways of writing the same file read the same."""
    series, plain = read_csv(csv_of(text)), read_csv(csv_of(GOOD))
    assert series.times_ns.tolist() == plain.times_ns.tolist()
    assert series.values.tolist() == plain.values.tolist()


@each_vector
def test_a_file_means_the_same_as_in_prediction(tmp_path, vector):
    """The rows, or the refusal's line, column and words, are those that the client's reader has, too."""
    path = tmp_path / "series.csv"
    path.write_bytes(vector.raw)
    if vector.rows:
        series = read_csv(path)
        assert series.names == vector.inputs
        values = map(tuple, series.values.tolist())
        assert tuple(zip(series.times_ns.tolist(), values, strict=True)) == vector.rows
    else:
        with pytest.raises(SeriesError) as caught:
            read_csv(path)
        vector.check_refusal(str(caught.value))


@pytest.mark.parametrize("first", ["2024-01-01", "20240101", "2024/01/01"])
def test_dates_are_a_calendar(csv_of, first):
    """A series of dates is a calendar in every notation, one of seconds is none."""
    days = [first[:-1] + str(day) for day in (1, 2, 3)]
    assert read_csv(csv_of("date,value\n" + "".join(f"{day},1\n" for day in days))).calendar


def test_numbers_are_unix_seconds(csv_of):
    """A time column of numbers counts seconds, exactly, and is no calendar."""
    series = read_csv(csv_of("time,value\n1.000000001,1\n2,2\n3.5,3\n"))
    assert series.times_ns.tolist() == [1_000_000_001, 2_000_000_000, 3_500_000_000]
    assert series.interval_ns == 0
    assert not series.calendar


def test_chooses_and_orders_columns(csv_of):
    """Columns are read as asked for, wherever the time column stands."""
    path = csv_of("a,b,date,c\n1,2,2024-01-01,3\n4,5,2024-01-02,6\n7,8,2024-01-03,9\n")
    assert read_csv(path).names == ("a", "b", "c")
    assert read_csv(path, ["c", "a"]).values.tolist() == [[3, 1], [6, 4], [9, 7]]
    assert read_csv(path, ["b"], time_column="a").times_ns.tolist() == [10**9, 4 * 10**9, 7 * 10**9]
    path = csv_of("time,date\n1,2024-01-01\n2,2024-01-02\n3,2024-01-03\n")
    assert read_csv(path, ["time"]).values.tolist() == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "0 rows"),
        ("timestamp,value\n", "0 rows"),
        ("\n".join(GOOD.split("\n")[:3]), "2 rows; at least 3"),
        (GOOD.replace("2.5", "many"), "line 3, column 'value': 'many' is not a number"),
        (GOOD.replace("2.5", ""), "line 3, column 'value': '' is not a number"),
        (GOOD.replace("2.5", "nan"), "line 3, column 'value': 'nan' is not a finite"),
        (GOOD.replace("2.5", "-inf"), "line 3, column 'value': '-inf' is not a finite"),
        (GOOD.replace("2.5", "1e39"), "line 3, column 'value': '1e39' is not a finite"),
        (
            GOOD.replace("00:30:00", "01:30:00"),
            "line 4, column 'timestamp': '2024-01-01 01:00:00' is earlier",
        ),
        (GOOD.replace("00:30:00", "00:00:00"), "line 3, column 'timestamp': '2024-01-01 00:00:00' repeats"),
        (
            GOOD.replace("00:30:00", "25:30:00"),
            "line 3, column 'timestamp': '2024-01-01 25:30:00' is not a time",
        ),
        (GOOD.replace("2024-01-01 00:30:00", "9" * 30), "line 3, column 'timestamp'"),
        (GOOD.replace(",2.5", ",2.5,7"), "line 3: 3 cells, but the header has 2"),
        (GOOD.replace(",2.5", ""), "line 3: 1 cells, but the header has 2"),
        ("a,b\n1,2\n2,3\n3,4\n", "no time column"),
        ("timestamp\n2024-01-01\n2024-01-02\n2024-01-03\n", "no value column"),
        (
            "timestamp,a,a\n2024-01-01,1,2\n2024-01-02,1,2\n2024-01-03,1,2\n",
            "column 'a' is there more than once",
        ),
    ],
)
def test_bad_files_are_refused_by_line_and_column(csv_of, text, said):
    """Each flaw is one line that names the file and, where there is one, line and column."""
    path = csv_of(text)
    with pytest.raises(SeriesError) as caught:
        read_csv(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_columns_and_files_are_refused(csv_of, tmp_path):
    """A column that is not there is named with those that are; so is a file that is not there or no text."""
    path = csv_of(GOOD)
    with pytest.raises(SeriesError, match="no column 'price'; there are timestamp, value"):
        read_csv(path, ["price"])
    with pytest.raises(SeriesError, match="no column 'when'"):
        read_csv(path, time_column="when")
    with pytest.raises(SeriesError, match="No such file"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(SeriesError, match="Is a directory"):
        read_csv(tmp_path)
    with pytest.raises(SeriesError, match="not a CSV text file"):
        read_csv(csv_of(GOOD.replace("value", "\xe4"), "latin-1"))


def test_imports_without_torch():
    """Reading and generating series, and the simple forecasts, need no torch."""
    code = "import sys, model.datasets, model.baselines; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


class TestMackeyGlass:
    """The generated series."""

    def test_is_deterministic_and_seeded(self):
        """The same seed gives the same rows, another seed gives others, and more rows begin with the same."""
        series = mackey_glass(300, seed=1)
        assert series.values.tolist() == mackey_glass(300, seed=1).values.tolist()
        assert series.values.tolist() == mackey_glass(400, seed=1).values[:300].tolist()
        assert series.values.tolist() != mackey_glass(300, seed=2).values.tolist()
        assert series.times_ns.tolist() == [i * 10**9 for i in range(300)]
        assert not series.calendar

    def test_converges_with_the_fourth_power_of_the_step(self):
        """Halving the step divides the error by about 16: the delayed term is as exact as the method."""

        def rows(substeps: int) -> np.ndarray:
            return mackey_glass(200, seed=1, gamma=0.3, beta=0.6, substeps=substeps, discard=0).values

        exact = rows(64)
        coarse, fine = np.abs(rows(1) - exact).max(), np.abs(rows(2) - exact).max()
        assert coarse > 1e-4
        assert 8 < coarse / fine < 40

    def test_without_delayed_term_decays(self):
        """With β = 0 the equation is x' = −γ x, whose solution is known."""
        values = mackey_glass(20, beta=0.0, discard=0).values[:, 0]
        np.testing.assert_allclose(values / values[0], np.exp(-0.1 * np.arange(20)), rtol=1e-5)

    def test_stays_on_its_attractor(self):
        """At τ = 17 the series neither settles nor leaves the known range."""
        values = mackey_glass(2000).values
        assert 0.3 < values.min() < 0.6
        assert 1.2 < values.max() < 1.4
        assert values[1000:].std() > 0.15

    def test_refuses_a_delay_between_steps(self):
        """A delay that is not a whole number of steps is refused."""
        with pytest.raises(ValueError, match="tau"):
            mackey_glass(10, tau=17.05)
