"""The Open Inference Protocol's requests, read: tensors, parameters, and what is wrong with them."""

import numpy as np
import pytest
from streamcell.inference import open_inference_pb2 as pb

from service.engine.work import INDEX_NEXT
from service.errors import Reason, StreamcellError
from service.servicers.inference import parameters
from service.servicers.inference.parameters import session_id_of
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
    """The same, with time."""
    return Rig(recurrence(uses_time=True)).engine


def read(engine, request, max_steps=100):
    """Returns what a request asks, and its steps."""
    ask = parameters.read_parameters(engine, request)
    return ask, parameters.read_rows(ask, request, max_steps, engine)


def refused(engine, request, max_steps=100):
    """Returns why a request is refused."""
    with pytest.raises(StreamcellError) as caught:
        read(engine, request, max_steps)
    return caught.value


@pytest.mark.parametrize("is_raw", [True, False])
def test_one_row_is_one_step(engine, is_raw):
    """An x of [1, F] is one step, raw or typed."""
    rows = read(engine, infer(X[:1], is_raw=is_raw))[1]
    assert (rows.num_steps, rows.is_row, rows.row) == (1, True, X[:1].tobytes())


@pytest.mark.parametrize("is_raw", [True, False])
def test_rows_are_steps(engine, is_raw):
    """An x of [1, T, F] is T steps."""
    rows = read(engine, infer(X[None], is_raw=is_raw))[1]
    assert (rows.num_steps, rows.is_row) == (3, False)
    assert np.array_equal(rows.x, X)


def test_one_row_of_three_dimensions_is_one_step(engine):
    """[1, 1, F] is one step, and answered in its own shape."""
    rows = read(engine, infer(X[None, :1]))[1]
    assert (rows.num_steps, rows.is_row, rows.row) == (1, False, X[:1].tobytes())


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1)])
@pytest.mark.parametrize("is_raw", [True, False])
def test_times_stand_beside_rows(timed, shape, is_raw):
    """A time for each step, in either shape and either form."""
    times = np.arange(T0, T0 + 3).reshape(shape)
    rows = read(timed, infer(X[None], time=times, is_raw=is_raw))[1]
    assert rows.times.tolist() == [T0, T0 + 1, T0 + 2]


def test_a_start_needs_its_time(timed):
    """On a model that uses time, what begins must say when; what runs on need not."""
    for request in (infer(X[:1]), infer(X[:1], sequence_id=5, sequence_start=True)):
        error = refused(timed, request)
        assert error.metadata["field"] == "time"
        assert "must give it" in error.message
    assert read(timed, infer(X[:1], sequence_id=5))[1].times is None


def test_parameters_are_read(engine):
    """Sequence, flags, index and time-out; priority and all that is unknown are ignored."""
    request = infer(
        X[:1], sequence_id="s", sequence_start=True, sequence_end=True, step_index=0,
        timeout=500, priority="odd", triton_enable_empty_final_response=True, mine=1.5,
    )  # fmt: skip
    ask, _ = read(engine, request)
    assert (ask.sequence, ask.is_start, ask.is_end) == ("s", True, True)
    assert (ask.first_index, ask.timeout_microseconds) == (0, 500)


@pytest.mark.parametrize("parameters", [{}, {"sequence_id": 0}, {"sequence_id": ""}])
def test_no_sequence_is_a_run_of_its_own(engine, parameters):
    """0, the empty string and nothing at all say the same."""
    ask, _ = read(engine, infer(X[:1], **parameters))
    assert (ask.session_id, ask.first_index) == ("", INDEX_NEXT)


def test_indexes_beyond_int64_are_cut(engine):
    """An index that no session reaches is a gap, whatever its size."""
    request = infer(X[:1], sequence_id=1)
    request.parameters["step_index"].uint64_param = (1 << 64) - 1
    assert read(engine, request)[0].first_index == (1 << 63) - 1


def test_sequences_of_all_names_are_sessions_of_their_own():
    """Integer and string ids, and models, never meet; names that are no session ids are hashed."""
    asked = [
        ("m", "1", 5), ("m", "1", "5"), ("m", "2", 5), ("n", "1", 5), ("m", "1", -5), ("m", "1", "a b"),
        ("m", "1", "x" * 300), ("m", "1", "ü"), ("m", "1:str:x", "y"), ("m", "1", "x:str:y"),
        ("m", "1", "\n"),
    ]  # fmt: skip
    found = [session_id_of(*each) for each in asked]
    assert len(set(found)) == len(found)
    assert found[0] == "inference:m/1:int:5"
    assert all(len(each) <= 128 and each.isascii() and each.isprintable() for each in found)


def shaped(*shape, count=None):
    """Returns a request whose x has a shape, with as many bytes as it says or as `count` elements have."""
    request = pb.ModelInferRequest(model_name="recurrence")
    request.inputs.add(name="x", datatype="FP32", shape=shape)
    request.raw_input_contents.append(bytes(4 * (int(np.prod(shape)) if count is None else count)))
    return request


def changed(change, **kwargs):
    """Returns a good request, changed."""
    request = infer(X[:1], **kwargs)
    change(request)
    return request


def twice(request):
    """Gives x in both forms."""
    request.inputs[0].contents.fp32_contents.extend([1, 2])


def typed(**contents):
    """Returns a request with x typed, of these contents."""
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
    "time that the model has not": (infer(X[:1], time=[[T0]]), "inputs", "no input 'time'"),
    "more raw entries": (
        changed(lambda r: r.raw_input_contents.append(b"")), "raw_input_contents", "2 entries for 1",
    ),
    "contents twice": (changed(twice), "x", "given twice"),
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


@pytest.mark.parametrize(("request_", "field", "says"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_requests_are_refused(engine, request_, field, says):
    """Each is INVALID_ARGUMENT, names the tensor or parameter, and says what was expected."""
    error = refused(engine, request_)
    assert error.reason is Reason.INVALID_ARGUMENT
    assert error.metadata["field"] == field
    assert says in error.message
    assert field in error.message


def test_two_million_steps_are_too_many(engine):
    """A shape is bounded before its contents are looked at."""
    error = refused(engine, shaped(1, 2_000_000, 2, count=0))
    assert error.reason is Reason.TOO_MANY_STEPS
    assert "2000000 steps" in error.message


TIMES = {
    "another type": ("INT32", np.array([[1]], "<i4"), "'INT32'; INT64 is expected"),
    "too many": ("INT64", np.array([[1, 2]]), "shape is [1, 2]; expected is [1, 1]"),
    "without the batch": ("INT64", np.array([1]), "shape is [1]; expected is [1, 1]"),
    "beyond the range": ("INT64", np.array([[(1 << 63) - 1]]), "beyond"),
}


@pytest.mark.parametrize(("datatype", "values", "says"), TIMES.values(), ids=TIMES)
def test_malformed_times_are_refused(timed, datatype, values, says):
    """Times are checked as x is."""
    request = infer(X[:1])
    add(request, "time", datatype, values)
    error = refused(timed, request)
    assert error.metadata["field"] == "time"
    assert says in error.message


def test_typed_times_are_counted(timed):
    """As many times as the shape says."""
    request = infer(X[:1], time=[[T0]], is_raw=False)
    request.inputs[1].contents.int64_contents.append(1)
    assert "2 elements in contents; 1 are expected" in refused(timed, request).message


def test_a_parameter_is_read_by_its_type(engine):
    """uint64 ids are the numbers that they are."""
    request = infer(X[:1])
    request.parameters["sequence_id"].uint64_param = 7
    other = infer(X[:1])
    set_parameters(other, sequence_id=7)
    assert read(engine, request)[0].session_id == read(engine, other)[0].session_id
