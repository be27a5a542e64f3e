"""RequestCache: a request whose like was read is known by its bytes, and never taken for what it is not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamcell.inference import open_inference_pb2 as pb

from service.errors import StreamcellError
from service.servicers.inference import parameters, request_cache
from service.servicers.inference.request_cache import RequestCache
from tests.fakes import Rig
from tests.inference import infer

X = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
ENGINE = Rig().engine
NAN = [[float("nan"), 0]]


def read(request, principal=""):
    """Returns what a request asks, read as a whole."""
    ask = parameters.read_parameters(ENGINE, request, principal)
    parameters.read_rows(ask, request, 100, ENGINE)
    return ask


def known(*requests, principal=""):
    """Returns heads that have learnt requests."""
    heads = RequestCache()
    for request in requests:
        heads.add(principal, request.SerializeToString(), read(request, principal))
    return heads


def found(heads, request, principal=""):
    """Looks a request up."""
    return heads.find(principal, request.SerializeToString())


def test_a_request_is_known_by_all_but_id_and_row():
    """These two are its own; the rest is what was read."""
    first = infer(X[:1], sequence_id=7, request_id="first")
    ask, name, row = found(known(first), infer(X[1:2], sequence_id=7, request_id="second"))
    assert (ask, name, row) == (read(first), "second", X[1:2].tobytes())
    assert found(known(first), infer(X[1:2], sequence_id=7))[1] == ""


@pytest.mark.parametrize(
    "other",
    [
        infer(X[:1], sequence_id=8),
        infer(X[:1], sequence_id="7"),
        infer(X[:1], sequence_id=7, sequence_start=True),
        infer(X[:1], sequence_id=7, step_index=1),
        infer(X[:1], sequence_id=7, version="1"),
        infer(X[:1], sequence_id=7, model="other"),
        infer(X[None, :1], sequence_id=7),
        infer(X[:1]),
        infer(X[:1], sequence_id=7, time=[[1]]),
        infer(X[:1], sequence_id=7, is_raw=False),
    ],
)
def test_what_says_anything_else_is_not_known(other):
    """Whatever it is: it is to be read."""
    assert found(known(infer(X[:1], sequence_id=7)), other) is None


@pytest.mark.parametrize("x", [NAN, [[1.0]], [[1.0, 2.0, 3.0]]])
def test_a_wrong_row_is_not_known(x):
    """It is read, which tells what is wrong."""
    request, wrong = infer(X[:1], sequence_id=7), infer(X[:1], sequence_id=7)
    wrong.raw_input_contents[0] = np.asarray(x, "<f4").tobytes()
    assert found(known(request), wrong) is None


def test_contents_that_are_not_one_are_not_known():
    """Nor is what is no request at all."""
    heads, twice = known(infer(X[:1], sequence_id=7)), infer(X[:1], sequence_id=7)
    twice.raw_input_contents.append(X[:1].tobytes())
    assert found(heads, twice) is None
    assert heads.find("", b"\xff\xff") is None
    assert heads.find("", b"\x1a\x01\xff" + infer(X[:1], sequence_id=7).SerializeToString()) is None


def test_callers_are_told_apart():
    """A sequence is its caller's: what one asks is not what another one does."""
    request = infer(X[:1], sequence_id=7)
    assert found(known(request, principal="me"), request, "you") is None
    ask, _, _ = found(known(request, principal="me"), request, "me")
    assert ask.key == "me\0inference:recurrence:int:7"


def test_what_is_not_asked_again_is_not_learnt():
    """An index goes on, and a head beyond some size would take memory at the caller's pleasure."""
    for request in (
        infer(X[:1], sequence_id=7, step_index=3),
        infer(X[:1], sequence_id=7, other="x" * 600),
    ):
        assert found(known(request), request) is None


def test_there_are_only_so_many(monkeypatch):
    """One more, and all begin anew."""
    monkeypatch.setattr(request_cache, "_MAX_ENTRIES", 2)
    requests = [infer(X[:1], sequence_id=number) for number in range(1, 4)]
    heads = known(*requests)
    assert [found(heads, request) is None for request in requests] == [True, True, False]


@given(
    st.lists(
        st.sampled_from(
            [
                pb.ModelInferRequest(id="one"),
                pb.ModelInferRequest(model_name="recurrence"),
                pb.ModelInferRequest(model_version="1"),
                pb.ModelInferRequest(parameters={"sequence_id": pb.InferParameter(int64_param=7)}),
                pb.ModelInferRequest(parameters={"sequence_id": pb.InferParameter(string_param="s")}),
                pb.ModelInferRequest(parameters={"sequence_end": pb.InferParameter(bool_param=True)}),
                infer(X[:1]),
                infer(X[1:2], sequence_id=9, request_id="two"),
            ]
        ),
        max_size=6,
    )
)
def test_whatever_the_order_of_its_bytes_it_says_what_is_read(parts):
    """A message may be cut and put together anyhow: known or not, it is taken for what it is."""
    raw = b"".join(part.SerializeToString() for part in parts)
    request = pb.ModelInferRequest.FromString(raw)
    try:
        ask = read(request)
    except StreamcellError:
        return
    heads = RequestCache()
    heads.add("", raw, ask)
    assert heads.find("", raw) == (ask, request.id, request.raw_input_contents[0])
    again = raw + pb.ModelInferRequest(id="three").SerializeToString()
    assert heads.find("", again) == (ask, "three", request.raw_input_contents[0])
