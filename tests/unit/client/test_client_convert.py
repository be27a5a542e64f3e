"""Conversion: times, rows, histories."""

import datetime
import struct
from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streamcell import InvalidArgument, convert
from streamcell.v1 import streamcell_pb2 as pb

UTC = datetime.UTC


def test_messages_become_values():
    """Models and sessions carry every field over."""
    model = convert.to_model(pb.Model(
        name="m", version="2", inputs=[pb.Variable(name="x", unit="K")],
        outputs=[pb.Variable(name="y", target="x", role="quantile", quantile=0.5)],
        status=pb.MODEL_STATUS_RETIRING, uses_time=True, step_interval_seconds=60.0, num_sessions=3,
    ))  # fmt: skip
    assert (model.inputs[0].unit, model.outputs[0].target, model.outputs[0].quantile) == ("K", "x", 0.5)
    assert (model.retiring, model.uses_time, model.num_sessions) == (True, True, 3)
    info = convert.to_session_info(pb.Session(session_id="s", next_step_index=4, durable=True, epoch=2))
    assert (info.session_id, info.next_step_index, info.durable, info.epoch) == ("s", 4, True, 2)
    assert convert.to_rows([1.0, 2.0, 3.0, 4.0], 2) == ((1.0, 2.0), (3.0, 4.0))


class TestTimes:
    """Datetimes and whole nanoseconds become Unix nanoseconds."""

    @settings(deadline=None)
    @given(st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2250, 1, 1)))
    def test_a_datetime_is_its_exact_nanoseconds(self, moment):
        """No microsecond is lost to floating point, before or after 1970."""
        time_ns = convert.to_time_ns(moment.replace(tzinfo=UTC))
        back = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=time_ns // 1000)
        assert back == moment
        assert time_ns % 1000 == 0

    def test_time_zones_are_obeyed(self):
        """The same instant in two zones is the same number."""
        zone = datetime.timezone(datetime.timedelta(hours=2))
        assert convert.to_time_ns(datetime.datetime(1970, 1, 1, 2, tzinfo=zone)) == 0

    @pytest.mark.parametrize(
        ("time", "message"),
        [
            (datetime.datetime(2026, 1, 1), "no time zone"),
            (1.5, "neither an aware datetime nor whole"),
            ("2026-01-01", "neither an aware datetime nor whole"),
            (True, "neither an aware datetime nor whole"),
            (datetime.datetime(9999, 1, 1, tzinfo=UTC), "64 bits"),
            (1 << 63, "64 bits"),
        ],
    )
    def test_what_is_no_time_is_refused(self, time, message):
        """Naive times, fractions, text and what does not fit are refused, and the field is named."""
        with pytest.raises(InvalidArgument, match=message) as caught:
            convert.to_time_ns(time)
        assert caught.value.field == "time"


class TestRows:
    """Sequences and buffers of numbers become float32 values."""

    @pytest.mark.parametrize(
        "row", [[1, 2], (1.0, 2.0), array("d", [1, 2]), np.array([1, 2]), np.float32([1, 2]), iter([1, 2])]
    )
    def test_rows_of_many_kinds(self, row):
        """Lists, tuples, arrays of any number type are rows."""
        assert list(convert.to_x(row)) == [1.0, 2.0]

    @pytest.mark.parametrize("row", ["12", b"1234", bytearray(8), ["1"], [None], 3.0, [[1.0]], [10**400]])
    def test_what_is_no_row_is_refused(self, row):
        """Text, bytes, single numbers and nested rows are refused, and the field is named."""
        with pytest.raises(InvalidArgument) as caught:
            convert.to_x(row)
        assert caught.value.field == "x"

    def test_a_timed_row_is_a_pair(self):
        """Only a pair whose second part has a length is a time and a row."""
        assert convert.to_step((5, [1.0])) == (5, array("f", [1.0]))
        assert convert.to_step((5, np.ones(2))) == (5, array("f", [1.0, 1.0]))
        assert convert.to_step((5.0, 1.0)) == (None, array("f", [5.0, 1.0]))
        assert convert.to_step([5, 1.0]) == (None, array("f", [5.0, 1.0]))

    async def test_each_takes_both_kinds_of_iterable(self):
        """Ordinary and asynchronous iterables come out alike."""

        async def later():
            for value in (1, 2):
                yield [value]

        assert [item async for item in convert.each([[1], [2]])] == [[1], [2]]
        assert [item async for item in convert.each(later())] == [[1], [2]]


class TestHistories:
    """Many rows become columns, which are packed in pieces."""

    @pytest.mark.parametrize("kind", ["<f4", "<f8", "<i4", ">f4", "F"])
    def test_a_history_from_any_array(self, kind):
        """Arrays of any number type and memory layout give the same columns."""
        values = np.arange(6).reshape(3, 2)
        rows = np.asfortranarray(values, np.float32) if kind == "F" else values.astype(kind)
        history = convert.to_history(rows, None)
        assert (history.num_steps, list(history.x)) == (3, [0, 1, 2, 3, 4, 5])
        assert history.step_bytes == 8

    def test_pieces_are_packed_little_endian(self):
        """A piece holds just its steps' values and times."""
        history = convert.to_history([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], iter([10, 20, 30]))
        assert history.between(1, 3).packed() == (struct.pack("<4f", 3, 4, 5, 6), struct.pack("<2q", 20, 30))
        assert history.step_bytes == 16
        assert convert.to_history([[1.0]], None).packed() == (struct.pack("<f", 1), b"")

    @pytest.mark.parametrize(
        ("rows", "times", "message"),
        [
            ([[1.0], [1.0, 2.0]], None, r"rows\[1\]: 2 values where the rows before have 1"),
            ([[1.0], ["x"]], None, r"rows\[1\]"),
            ([[1.0]], [1, 2], "2 times for 1 rows"),
            ([[1.0]], [datetime.datetime(2026, 1, 1)], "no time zone"),
        ],
    )
    def test_a_history_that_does_not_fit_is_refused(self, rows, times, message):
        """Ragged rows, wrong rows and too many times are named."""
        with pytest.raises(InvalidArgument, match=message):
            convert.to_history(rows, times)
