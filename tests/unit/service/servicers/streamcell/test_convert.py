"""Conversions between messages and work: every value is checked, and an error names the field at fault."""

import struct

import pytest
from streamcell.v1 import streamcell_pb2 as pb

from service import errors
from service.accounts import NOBODY
from service.engine.progress import TIME_ABSENT
from service.engine.session_ref import SessionRef
from service.engine.work import INDEX_NEXT
from service.errors import Reason, StreamcellError
from service.servicers.streamcell import convert
from tests import fakes
from tests.fakes import Rig

ENGINE = Rig().engine
TIMED = Rig(fakes.recurrence(uses_time=True, num_future=2)).engine
SESSION = SessionRef(ENGINE, 3, 0)
NAN, INF = float("nan"), float("inf")


def refusal(function, *args, **kwargs):
    """Returns the error that a conversion raises."""
    with pytest.raises(StreamcellError) as caught:
        function(*args, **kwargs)
    return caught.value


def floats(*values):
    """Returns values packed as float32."""
    return struct.pack(f"<{len(values)}f", *values)


def ints(*values):
    """Returns values packed as int64."""
    return struct.pack(f"<{len(values)}q", *values)


class TestStep:
    """A step request as work."""

    def test_time_and_index_are_given_or_absent(self):
        """An absent time or index is not the same as zero."""
        bare = convert.step_work(SESSION, pb.StepRequest(), b"x", print)
        assert (bare.slot, bare.generation, bare.x, bare.time, bare.index) == (
            3,
            0,
            b"x",
            TIME_ABSENT,
            INDEX_NEXT,
        )
        given = convert.step_work(SESSION, pb.StepRequest(time_ns=0, step_index=0), b"x", print)
        assert (given.time, given.index, given.arrived_ns) == (0, 0, ENGINE.now())

    def test_a_first_step_needs_a_time_if_the_model_uses_times(self):
        """Models without times need none."""
        error = refusal(convert.check_first_time, TIMED, pb.StepRequest())
        assert error.metadata == {"field": "time_ns"}
        convert.check_first_time(TIMED, pb.StepRequest(time_ns=0))
        convert.check_first_time(ENGINE, pb.StepRequest())


class TestInputRows:
    """The rows of a request, packed or as a list."""

    @pytest.mark.parametrize("field", ["x_raw", "x"])
    def test_rows_may_be_packed_or_listed(self, field):
        """Both forms give the same rows."""
        raw, listed = (floats(1, 2, 3, 4), []) if field == "x_raw" else (b"", [1, 2, 3, 4])
        assert convert.input_rows(ENGINE, "x", raw=raw, listed=listed, max_rows=10).tolist() == [
            [1, 2],
            [3, 4],
        ]

    @pytest.mark.parametrize(
        ("raw", "listed", "field", "problem"),
        [
            (b"", [], "x_raw", "give one of x_raw and x"),
            (floats(1, 2), [1, 2], "x_raw", "give one of x_raw and x"),
            (b"1234567", [], "x_raw", "7 bytes are not rows of 2 float32: flow (l/s), valve"),
            (floats(1, 2, 3), [], "x_raw", "12 bytes are not rows"),
            (b"", [1, 2, 3], "x", "3 values"),
            (floats(1, 2, 3, NAN), [], "x_raw", "row 1, 'valve' is nan"),
            (b"", [1, 2, INF, 4], "x", "row 1, 'flow' is inf"),
        ],
    )
    def test_wrong_rows_are_refused(self, raw, listed, field, problem):
        """The error names the field at fault."""
        error = refusal(convert.input_rows, ENGINE, "x", raw=raw, listed=listed, max_rows=10)
        assert error.metadata == {"field": field}
        assert problem in error.message

    @pytest.mark.parametrize(("raw", "listed"), [(floats(*[0] * 6), []), (b"", [0] * 6)])
    def test_the_number_of_rows_is_bounded(self, raw, listed):
        """As many rows as the bound are taken; one more is TOO_MANY_STEPS."""
        assert len(convert.input_rows(ENGINE, "x", raw=raw, listed=listed, max_rows=3)) == 3
        assert (
            refusal(convert.input_rows, ENGINE, "x", raw=raw, listed=listed, max_rows=2).reason
            is Reason.TOO_MANY_STEPS
        )


class TestPrimeBlock:
    """A prime request as work."""

    def test_a_prime_is_a_block_of_one_entry(self):
        """The block has the request's rows, times and index, and keeps the last reply alone."""
        request = pb.PrimeRequest(x_raw=floats(1, 2, 3, 4), time_ns=[5, 6], step_index=7)
        block = convert.prime_block(SessionRef(TIMED, 3, 0), request, 10, print)
        assert (block.slots.tolist(), block.totals.tolist(), block.indexes.tolist()) == ([3], [2], [7])
        assert block.x.tolist() == [[1, 2], [3, 4]]
        assert block.times.tolist() == [5, 6]
        assert not block.wants_replies
        bare = convert.prime_block(SESSION, pb.PrimeRequest(x=[1, 2]), 10, print)
        assert (bare.indexes.tolist(), bare.times) == ([INDEX_NEXT], None)

    def test_the_largest_index_stays_positive(self):
        """The largest uint64 becomes the largest int64, not a negative number."""
        block = convert.prime_block(SESSION, pb.PrimeRequest(x=[1, 2], step_index=2**64 - 1), 10, print)
        assert block.indexes.tolist() == [2**63 - 1]


class TestFutureRows:
    """The known future values of a forecast."""

    @pytest.mark.parametrize("horizon", [0, 11, 2**32 - 1])
    def test_a_horizon_out_of_range_is_refused(self, horizon):
        """A horizon is from 1 to the server's bound."""
        error = refusal(convert.future_rows, ENGINE, pb.ForecastRequest(horizon_steps=horizon), 10)
        assert error.metadata == {"field": "horizon_steps"}
        assert f"1 to 10, not {horizon}" in error.message

    def test_there_is_a_row_for_each_step_ahead(self):
        """Each row has the model's known values; a model without them has empty rows."""
        request = pb.ForecastRequest(horizon_steps=2, future=[1, 2, 3, 4])
        assert convert.future_rows(TIMED, request, 10).tolist() == [[1, 2], [3, 4]]
        assert convert.future_rows(ENGINE, pb.ForecastRequest(horizon_steps=10), 10).shape == (10, 0)

    @pytest.mark.parametrize("future", [[], [1], [1, 2, 3], [NAN, 1], [1, INF]])
    def test_wrong_future_values_are_refused(self, future):
        """Too few values, too many, or a value that is not finite."""
        request = pb.ForecastRequest(horizon_steps=1, future=future)
        assert refusal(convert.future_rows, TIMED, request, 10).metadata == {"field": "future"}

    def test_a_model_without_known_values_takes_none(self):
        """Values that the model cannot use are refused, not ignored."""
        request = pb.ForecastRequest(horizon_steps=1, future=[1])
        assert "1 values; 1 rows of 0" in refusal(convert.future_rows, ENGINE, request, 10).message


class TestMessages:
    """Sessions, models and errors as messages."""

    def test_a_session_message_has_every_field(self):
        """Id, model, position, time, lifetime and epoch."""
        rig = Rig(fakes.recurrence(uses_time=True))
        (slot,) = rig.open("me")
        rig.step(slot, [1, 1], time=77)
        rig.run()
        assert convert.session_message(SessionRef.at(rig.engine, slot), 5.5) == pb.Session(
            session_id="me", model_name="recurrence", model_version="1", next_step_index=1, last_time_ns=77,
            ttl_seconds=5.5, epoch=1,
        )  # fmt: skip

    def test_a_model_message_has_every_part_of_the_manifest(self):
        """The message has the manifest's parts, the number of the caller's sessions and the status."""
        rig = Rig(fakes.recurrence(uses_time=True, num_future=1))
        rig.open("a", "b")
        rig.engine.residents.open("alice\0a")
        shown = convert.model_message(rig.engine, NOBODY)
        assert (shown.name, shown.version, shown.state_bytes, shown.num_sessions) == (
            "recurrence",
            "1",
            12,
            2,
        )
        assert [part.name for part in shown.inputs] == ["flow", "valve"]
        assert [(part.role, part.quantile, part.target) for part in shown.outputs] == [
            ("mean", 0.0, "flow"), ("quantile", 0.9, "flow"),
        ]  # fmt: skip
        assert [part.name for part in shown.future] == ["plan0"]
        assert (shown.uses_time, shown.step_interval_seconds, shown.status) == (
            True,
            1.0,
            pb.MODEL_STATUS_SERVING,
        )
        assert shown.manifest_json == rig.model.manifest.text

    def test_an_error_message_has_what_a_status_has(self):
        """Code, reason, facts and delay."""
        found = convert.stream_error(errors.refusal(Reason.STEP_GAP, expected_step_index=5, got=9))
        assert (found.code, found.reason, found.metadata) == (9, "STEP_GAP", {"expected_step_index": "5"})
        assert (
            convert.stream_error(
                errors.refusal(Reason.OVERLOADED, queued_steps=1, retry_delay_seconds=0.5)
            ).retry_delay_seconds
            == 0.5
        )
