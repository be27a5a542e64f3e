"""Values of requests: each is checked, and an error names the field at fault."""

import struct

import numpy as np
import pytest
from streamcell.v1 import streamcell_pb2 as pb

from service.errors import StreamcellError
from service.servicers import values
from tests.fakes import Rig

ENGINE = Rig().engine
NAN, INF = float("nan"), float("inf")


def refusal(function, *args):
    """Returns the error that a check raises."""
    with pytest.raises(StreamcellError) as caught:
        function(*args)
    return caught.value


def floats(*given):
    """Returns values packed as float32."""
    return struct.pack(f"<{len(given)}f", *given)


def ints(*given):
    """Returns values packed as int64."""
    return struct.pack(f"<{len(given)}q", *given)


class TestRow:
    """One input row, as a list."""

    def test_a_row_is_packed_exactly(self):
        """Float32 values arrive bit for bit."""
        listed = pb.StepRequest(x=[0.1, -1e-42]).x
        assert values.row(ENGINE, listed) == floats(0.1, -1e-42)
        largest = pb.StepRequest(x=[3.4028234e38] * 2).x
        assert values.row(ENGINE, largest) == floats(3.4028234e38, 3.4028234e38)

    @pytest.mark.parametrize("listed", [[], [1], [1, 2, 3]])
    def test_a_row_of_another_width(self, listed):
        """The message has the count, the model and the inputs' names."""
        error = refusal(values.row, ENGINE, listed)
        assert error.metadata == {"field": "x"}
        assert f"{len(listed)} values; recurrence/1 takes 2 a step: flow (l/s), valve" in error.message

    @pytest.mark.parametrize("listed", [[NAN, 1], [1, NAN], [INF, 1], [1, -INF], [INF, -INF]])
    def test_a_row_that_is_not_finite(self, listed):
        """The message names the input of the first value at fault."""
        error = refusal(values.row, ENGINE, listed)
        name = "flow" if not np.isfinite(listed[0]) else "valve"
        assert error.metadata == {"field": "x"}
        assert f"row 0, {name!r} is" in error.message


class TestTimes:
    """One time per row, packed or as a list."""

    def test_times_may_be_packed_or_listed_or_left_out(self):
        """All forms give int64, exact to the nanosecond."""
        now = 1_700_000_000_123_456_789
        assert values.times("t", ints(now, -1), (), 2).tolist() == [now, -1]
        assert values.times("t", b"", [now, -1], 2).tolist() == [now, -1]
        assert values.times("t", b"", (), 2) is None

    @pytest.mark.parametrize(
        ("raw", "listed"),
        [(ints(1), [1]), (ints(1, 2), []), (b"123", []), (b"", [1, 2]), (ints(1)[:-1], [])],
    )
    def test_times_that_do_not_fit_the_rows(self, raw, listed):
        """There must be one time for each row, in one form."""
        assert refusal(values.times, "time_raw", raw, listed, 1).metadata == {"field": "time_raw"}


class TestColumn:
    """Packed whole numbers."""

    def test_unsigned_numbers_come_as_int64(self):
        """The largest uint32 and the largest int64 arrive."""
        assert values.column("n", struct.pack("<2I", 1, 2**32 - 1), "<u4", 2).tolist() == [1, 2**32 - 1]
        assert values.column("n", struct.pack("<Q", 2**63 - 1), "<u8", 1).tolist() == [2**63 - 1]
        assert values.column("n", b"", "<u8", 0).tolist() == []

    @pytest.mark.parametrize("raw", [struct.pack("<Q", 2**63), struct.pack("<2Q", 1, 2), b"1234567"])
    def test_numbers_that_do_not_fit(self, raw):
        """Too many bytes, too few, and a number beyond int64 are refused."""
        assert refusal(values.column, "n", raw, "<u8", 1).metadata == {"field": "n"}
