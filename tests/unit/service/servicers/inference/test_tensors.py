"""Reading requests: tensors, parameters, and what is wrong with them."""

import numpy as np
import pytest
from streamcell.inference import open_inference_pb2 as pb

from service.engine.work import INDEX_NEXT
from service.errors import Reason, StreamcellError
from service.servicers.inference.parameters import read_parameters, read_rows, session_id_of
from tests.fakes import Rig, recurrence
from tests.inference import add, infer, set_parameters

X = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
T0 = 1_700_000_000 * 10**9


@pytest.fixture(scope="module")
def engine():
    """A model of two inputs."""
    return Rig().engine


@pytest.fixture(scope="module")
def timed():
    """A model of two inputs that uses time."""
    return Rig(recurrence(uses_time=True)).engine


def read(engine, request, max_steps=100):
    """Returns a request's parameters and its steps."""
    parameters = read_parameters(engine, request)
    return parameters, read_rows(parameters, request, max_steps, engine)


def refused(engine, request, max_steps=100):
    """Returns the error of a request."""
    with pytest.raises(StreamcellError) as caught:
        read(engine, request, max_steps)
    return caught.value


def shaped(*shape, count=None):
    """Returns a request whose x has a shape, with bytes for the shape or for `count` elements."""
    request = pb.ModelInferRequest(model_name="recurrence")
    request.inputs.add(name="x", datatype="FP32", shape=shape)
    request.raw_input_contents.append(bytes(4 * (int(np.prod(shape)) if count is None else count)))
    return request


def changed(change, **kwargs):
    """Returns a valid request after a change."""
    request = infer(X[:1], **kwargs)
    change(request)
    return request


def give_twice(request):
    """Gives x in both forms."""
    request.inputs[0].contents.fp32_contents.extend([1, 2])


def typed(**contents):
    """Returns a request whose x has typed contents."""
    request = pb.ModelInferRequest(model_name="recurrence")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    for name, values in contents.items():
        getattr(tensor.contents, name).extend(values)
    return request


MALFORMED = {
    "no input": (pb.ModelInferRequest(model_name="recurrence"), "x", "takes x (FP32)"),
    "no dimension": (shaped(), "x", "shape is []; expected is [1, 2]"),
    "one dimension": (shaped(2), "x", "shape is [2]; expected is [1, 2]"),
    "a batch of two": (shaped(2, 2), "x", "expected is [1, 2] for one step"),
    "a batch of two, of several": (shaped(2, 3, 2), "x", "[1, T, 2]"),
    "too few inputs": (shaped(1, 1), "x", "shape is [1, 1]"),
    "no steps": (shaped(1, 0, 2), "x", "shape is [1, 0, 2]"),
    "a negative dimension": (shaped(1, -1, 2, count=2), "x", "shape is [1, -1, 2]"),
    "many dimensions": (shaped(*[1] * 50), "x", ", …]; expected"),
    "too few bytes": (shaped(1, 2, count=1), "x", "4 bytes in raw_input_contents; 8 are expected"),
    "too many bytes": (shaped(1, 3, 2, count=7), "x", "28 bytes in raw_input_contents; 24 are expected"),
    "no bytes": (shaped(1, 2, count=0), "x", "0 bytes in raw_input_contents; 8 are expected"),
    "another type": (
        changed(lambda r: setattr(r.inputs[0], "datatype", "FP64")), "x", "'FP64'; FP32 is expected",
    ),
    "another name": (
        changed(lambda r: setattr(r.inputs[0], "name", "input")), "inputs", "no input 'input'; recurrence/1",
    ),
    "an input twice": (changed(lambda r: add(r, "x", "FP32", X[:1])), "x", "twice"),
    "time for a model without time": (infer(X[:1], time=[[T0]]), "inputs", "no input 'time'"),
    "more raw entries": (
        changed(lambda r: r.raw_input_contents.append(b"")), "raw_input_contents", "2 entries for 1",
    ),
    "contents twice": (changed(give_twice), "x", "given twice"),
    "contents not at all": (typed(), "x", "are not given; FP32 is expected in fp32_contents"),
    "contents of another type": (typed(fp64_contents=[1, 2]), "x", "are in fp64_contents"),
    "contents of two types": (typed(fp32_contents=[1, 2], int_contents=[1]), "x", "int_contents"),
    "too few elements": (typed(fp32_contents=[1]), "x", "1 values; recurrence/1 takes 2"),
    "not a number": (infer([[1, np.nan]]), "x", "'valve' is nan"),
    "not a number, typed": (infer([[np.inf, 1]], is_raw=False), "x", "'flow' is inf"),
    "not a number, of several": (infer([[[1, 2], [3, -np.inf]]]), "x", "row 1, 'valve' is -inf"),
    "shared memory": (
        changed(lambda r: setattr(r.inputs[0].parameters["shared_memory_region"], "string_param", "a")),
        "x", "shared memory is not offered",
    ),
    "an unknown output": (
        changed(lambda r: r.outputs.add(name="z")), "outputs", "no output 'z'; the only one is 'y'",
    ),
    "classification": (
        changed(lambda r: setattr(
            r.outputs.add(name="y").parameters["classification"], "int64_param", 3)),
        "y", "classification is not offered",
    ),
    "a start without a sequence": (infer(X[:1], sequence_start=True), "sequence_start", "sequence_id"),
    "an end without a sequence": (
        infer(X[:1], sequence_id=0, sequence_end=True), "sequence_end", "other than 0",
    ),
    "a start that is not the first": (
        infer(X[:1], sequence_id=1, sequence_start=True, step_index=3),
        "step_index", "is 3 with sequence_start",
    ),
    "an index without a sequence": (infer(X[:1], step_index=3), "step_index", "without a sequence_id"),
    "a sequence of another type": (infer(X[:1], sequence_id=1.5), "sequence_id", "given as double_param"),
    "a flag of another type": (
        infer(X[:1], sequence_id=1, sequence_end="yes"), "sequence_end", "bool_param is expected",
    ),
    "a parameter without a value": (
        changed(lambda r: r.parameters["sequence_id"].SetInParent()), "sequence_id", "given as None",
    ),
    "a negative index": (infer(X[:1], sequence_id=1, step_index=-1), "step_index", "is -1"),
    "a negative time-out": (infer(X[:1], timeout=-1), "timeout", "is -1"),
}  # fmt: skip


TIMES = {
    "another type": ("INT32", np.array([[1]], "<i4"), "'INT32'; INT64 is expected"),
    "too many": ("INT64", np.array([[1, 2]]), "shape is [1, 2]; expected is [1, 1]"),
    "without the batch": ("INT64", np.array([1]), "shape is [1]; expected is [1, 1]"),
    "beyond the range": ("INT64", np.array([[(1 << 63) - 1]]), "beyond"),
}


class TestRows:
    """Steps in a request."""

    @pytest.mark.parametrize("is_raw", [True, False])
    def test_one_row_is_one_step(self, engine, is_raw):
        """An x of [1, F] is one step, raw or typed."""
        rows = read(engine, infer(X[:1], is_raw=is_raw))[1]
        assert (rows.num_steps, rows.is_row, rows.row) == (1, True, X[:1].tobytes())

    @pytest.mark.parametrize("is_raw", [True, False])
    def test_rows_are_steps(self, engine, is_raw):
        """An x of [1, T, F] is T steps."""
        rows = read(engine, infer(X[None], is_raw=is_raw))[1]
        assert (rows.num_steps, rows.is_row) == (3, False)
        assert np.array_equal(rows.x, X)

    def test_one_row_of_three_dimensions_is_one_step(self, engine):
        """[1, 1, F] is one step, and answered in its own shape."""
        rows = read(engine, infer(X[None, :1]))[1]
        assert (rows.num_steps, rows.is_row, rows.row) == (1, False, X[:1].tobytes())

    def test_two_million_steps_are_too_many(self, engine):
        """A shape is bounded before its contents are looked at."""
        error = refused(engine, shaped(1, 2_000_000, 2, count=0))
        assert error.reason is Reason.TOO_MANY_STEPS
        assert "2000000 steps" in error.message


class TestTimes:
    """Times in a request."""

    @pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1)])
    @pytest.mark.parametrize("is_raw", [True, False])
    def test_times_stand_beside_rows(self, timed, shape, is_raw):
        """There is a time for each step, in either shape and either form."""
        times = np.arange(T0, T0 + 3).reshape(shape)
        rows = read(timed, infer(X[None], time=times, is_raw=is_raw))[1]
        assert rows.times.tolist() == [T0, T0 + 1, T0 + 2]

    def test_a_start_needs_its_time(self, timed):
        """On a model that uses time a first step must have a time; a later one need not."""
        for request in (infer(X[:1]), infer(X[:1], sequence_id=5, sequence_start=True)):
            error = refused(timed, request)
            assert error.metadata["field"] == "time"
            assert "must give it" in error.message
        assert read(timed, infer(X[:1], sequence_id=5))[1].times is None

    @pytest.mark.parametrize(("datatype", "values", "says"), TIMES.values(), ids=TIMES)
    def test_malformed_times_are_refused(self, timed, datatype, values, says):
        """The error names `time` and says what was expected."""
        request = infer(X[:1])
        add(request, "time", datatype, values)
        error = refused(timed, request)
        assert error.metadata["field"] == "time"
        assert says in error.message

    def test_typed_times_are_counted(self, timed):
        """There must be as many times as the shape says."""
        request = infer(X[:1], time=[[T0]], is_raw=False)
        request.inputs[1].contents.int64_contents.append(1)
        assert "2 elements in contents; 1 are expected" in refused(timed, request).message


class TestParameters:
    """Parameters of a request, and the ids of sequences."""

    def test_parameters_are_read(self, engine):
        """Sequence, flags, index and time-out are read; priority and unknown parameters are ignored."""
        request = infer(
            X[:1], sequence_id="s", sequence_start=True, sequence_end=True, step_index=0,
            timeout=500, priority="odd", triton_enable_empty_final_response=True, mine=1.5,
        )  # fmt: skip
        found, _ = read(engine, request)
        assert (found.sequence, found.is_start, found.is_end) == ("s", True, True)
        assert (found.first_index, found.timeout_microseconds) == (0, 500)

    @pytest.mark.parametrize("parameters", [{}, {"sequence_id": 0}, {"sequence_id": ""}])
    def test_a_request_without_a_sequence_has_no_session_id(self, engine, parameters):
        """0, the empty string and no parameter mean the same."""
        found, _ = read(engine, infer(X[:1], **parameters))
        assert (found.session_id, found.first_index) == ("", INDEX_NEXT)

    def test_indexes_beyond_int64_are_cut(self, engine):
        """Such an index is a gap in every session, whatever its size."""
        request = infer(X[:1], sequence_id=1)
        request.parameters["step_index"].uint64_param = (1 << 64) - 1
        assert read(engine, request)[0].first_index == (1 << 63) - 1

    def test_different_sequences_have_different_session_ids(self):
        """Ids of numbers, texts and models never meet; names against the rules of session ids are hashed."""
        asked = [
            ("m", "1", 5), ("m", "1", "5"), ("m", "2", 5), ("n", "1", 5), ("m", "1", -5), ("m", "1", "a b"),
            ("m", "1", "x" * 300), ("m", "1", "ü"), ("m", "1:str:x", "y"), ("m", "1", "x:str:y"),
            ("m", "1", "\n"),
        ]  # fmt: skip
        found = [session_id_of(*each) for each in asked]
        assert len(set(found)) == len(found)
        assert found[0] == "inference:m/1:int:5"
        assert all(len(each) <= 128 and each.isascii() and each.isprintable() for each in found)

    def test_a_parameter_is_read_by_its_type(self, engine):
        """An id as uint64 is the same sequence as an id as int64."""
        request = infer(X[:1])
        request.parameters["sequence_id"].uint64_param = 7
        other = infer(X[:1])
        set_parameters(other, sequence_id=7)
        assert read(engine, request)[0].session_id == read(engine, other)[0].session_id


class TestMalformed:
    """Requests that are refused."""

    @pytest.mark.parametrize(("request_", "field", "says"), MALFORMED.values(), ids=MALFORMED)
    def test_malformed_requests_are_refused(self, engine, request_, field, says):
        """The error is INVALID_ARGUMENT, names the tensor or parameter, and says what was expected."""
        error = refused(engine, request_)
        assert error.reason is Reason.INVALID_ARGUMENT
        assert error.metadata["field"] == field
        assert says in error.message
        assert field in error.message
