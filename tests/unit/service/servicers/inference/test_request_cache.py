"""RequestCache: a request is found by its bytes without id and row, and never taken for another."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamcell.inference import open_inference_pb2 as pb

from service.errors import StreamcellError
from service.servicers.inference import request_cache
from service.servicers.inference.parameters import read_parameters, read_rows
from service.servicers.inference.request_cache import RequestCache
from tests.fakes import Rig
from tests.inference import infer

X = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
ENGINE = Rig().engine
NAN = [[float("nan"), 0]]


def read(request, principal=""):
    """Returns the parameters of a request that is read in full."""
    parameters = read_parameters(ENGINE, request, principal)
    read_rows(parameters, request, 100, ENGINE)
    return parameters


def cache_of(*requests, principal=""):
    """Returns a cache that has requests."""
    cache = RequestCache()
    for request in requests:
        cache.add(principal, request.SerializeToString(), read(request, principal))
    return cache


def found(cache, request, principal=""):
    """Looks a request up."""
    return cache.find(principal, request.SerializeToString())


class TestFind:
    """Which requests are found."""

    def test_a_request_is_found_by_all_but_id_and_row(self):
        """The id and the row are its own; the parameters are those that were read before."""
        first = infer(X[:1], sequence_id=7, request_id="first")
        parameters, request_id, row = found(
            cache_of(first), infer(X[1:2], sequence_id=7, request_id="second")
        )
        assert (parameters, request_id, row) == (read(first), "second", X[1:2].tobytes())
        assert found(cache_of(first), infer(X[1:2], sequence_id=7))[1] == ""

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
    def test_a_request_that_differs_elsewhere_is_not_found(self, other):
        """A request that differs in any other field is to be read."""
        assert found(cache_of(infer(X[:1], sequence_id=7)), other) is None

    @pytest.mark.parametrize("x", [NAN, [[1.0]], [[1.0, 2.0, 3.0]]])
    def test_a_wrong_row_is_not_found(self, x):
        """The request is to be read, so that the error says what is wrong."""
        request, wrong = infer(X[:1], sequence_id=7), infer(X[:1], sequence_id=7)
        wrong.raw_input_contents[0] = np.asarray(x, "<f4").tobytes()
        assert found(cache_of(request), wrong) is None

    def test_bytes_without_exactly_one_raw_input_are_not_found(self):
        """Two raw inputs are not found, nor bytes that are no request."""
        cache, twice = cache_of(infer(X[:1], sequence_id=7)), infer(X[:1], sequence_id=7)
        twice.raw_input_contents.append(X[:1].tobytes())
        assert found(cache, twice) is None
        assert cache.find("", b"\xff\xff") is None
        assert cache.find("", b"\x1a\x01\xff" + infer(X[:1], sequence_id=7).SerializeToString()) is None

    def test_a_request_of_another_caller_is_not_found(self):
        """A sequence is its caller's: the same bytes of another caller are not found."""
        request = infer(X[:1], sequence_id=7)
        assert found(cache_of(request, principal="me"), request, "you") is None
        parameters, _, _ = found(cache_of(request, principal="me"), request, "me")
        assert parameters.key == "me\0inference:recurrence:int:7"

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
    def test_what_is_found_equals_what_is_read(self, parts):
        """A message may be cut and joined in any way: what is found equals what is read."""
        raw = b"".join(part.SerializeToString() for part in parts)
        request = pb.ModelInferRequest.FromString(raw)
        try:
            parameters = read(request)
        except StreamcellError:
            return
        cache = RequestCache()
        cache.add("", raw, parameters)
        assert cache.find("", raw) == (parameters, request.id, request.raw_input_contents[0])
        again = raw + pb.ModelInferRequest(id="three").SerializeToString()
        assert cache.find("", again) == (parameters, "three", request.raw_input_contents[0])


class TestAdd:
    """Which requests are added, and how many."""

    def test_requests_that_do_not_recur_are_not_added(self):
        """A request with a step index never comes again, and a long one would fill the memory."""
        for request in (
            infer(X[:1], sequence_id=7, step_index=3),
            infer(X[:1], sequence_id=7, other="x" * 600),
        ):
            assert found(cache_of(request), request) is None

    def test_a_full_cache_is_emptied(self, monkeypatch):
        """One request over the bound empties the cache."""
        monkeypatch.setattr(request_cache, "_MAX_ENTRIES", 2)
        requests = [infer(X[:1], sequence_id=number) for number in range(1, 4)]
        cache = cache_of(*requests)
        assert [found(cache, request) is None for request in requests] == [True, True, False]
