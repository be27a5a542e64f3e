"""ModelInferRequest, fuzzed: whatever a client sends is answered or refused, never a fault of the server."""

import asyncio
import contextlib
import random

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streamcell.inference import open_inference_pb2 as pb

from service.errors import Reason
from service.rpc.methods import Call, Unary
from service.rpc.statuses import RefusedError
from tests.fakes import Alone, Refusal, Served, recurrence, renamed
from tests.inference import SERVICE, infer, y_of

NUM_EXAMPLES = 10_000
INFER = f"{SERVICE}/ModelInfer"
T0 = 1_700_000_000 * 10**9

# Parts of requests, made once. An example draws which of them its request has.
CHANCE = random.Random(6)
TEXTS = ["recurrence", "timed", "", "x", "time", "y", "1", "2", "FP32", "INT64", "BYTES", "ü\n", "x" * 300]
SIZES = [1, 1, 1, 2, 2, 2, 3, 0, -1, 1 << 40, (1 << 63) - 1]
FLOATS = [0.5, 1.0, -2.0, 1e-40, 3e38, -3e38, float("nan"), float("inf")]
WHOLE = [0, 1, 2, 5, -1, T0, 1 << 62, (1 << 63) - 1, -(1 << 63)]
RAWS = [
    np.float32([1, 2]).tobytes(), np.float32([1, 2, 3, 4]).tobytes(), T0.to_bytes(8, "little"), b"",
    np.float32([np.nan, 2]).tobytes(), np.float32([3e38, 3e38]).tobytes(), b"\xff" * 8, b"\0" * 3, b"\0" * 8,
    b"\0" * 24,
]  # fmt: skip
VALUES = {
    "bool_param": [False, True],
    "int64_param": WHOLE,
    "uint64_param": [0, 1, 2, (1 << 64) - 1],
    "string_param": ["", "a", "b c", "ü" * 200, "\0"],
    "double_param": FLOATS,
}
VALID = {
    "sequence_id": [("int64_param", 1), ("int64_param", 2), ("string_param", "a"), ("string_param", "b c")],
    "sequence_start": [("bool_param", False), ("bool_param", True)],
    "sequence_end": [("bool_param", False), ("bool_param", True)],
    "step_index": [("int64_param", 0), ("uint64_param", 1), ("int64_param", 3)],
    "timeout": [("int64_param", 0), ("int64_param", 1), ("uint64_param", 60_000_000)],
    "priority": [("uint64_param", 1)],
}


def some(values, most):
    """Returns up to `most` of some values, with repeats."""
    return CHANCE.choices(values, k=CHANCE.randint(0, most))


def parameters():
    """Returns valid parameters, and sometimes one of a wrong type or name, or without a value."""
    found = {}
    has_sequence = CHANCE.random() < 0.7
    for name, values in VALID.items():
        if has_sequence and (name == "sequence_id" or CHANCE.random() < 0.3):
            kind, value = CHANCE.choice(values)
            found[name] = pb.InferParameter(**{kind: value})
    if CHANCE.random() < 0.15:
        kind = CHANCE.choice([*VALUES, ""])
        odd = pb.InferParameter(**({kind: CHANCE.choice(VALUES[kind])} if kind else {}))
        found[CHANCE.choice([*VALID, "triton_x", "shared_memory_region", ""])] = odd
    return found


def tensor():
    """Returns an input of any name, type, shape and contents."""
    contents = pb.InferTensorContents(
        fp32_contents=some(FLOATS, 6), int64_contents=some(WHOLE, 2), fp64_contents=some(FLOATS, 1)
    )
    return pb.ModelInferRequest.InferInputTensor(
        name=CHANCE.choice(TEXTS),
        datatype=CHANCE.choice(TEXTS),
        shape=some(SIZES, 4),
        contents=CHANCE.choice([None, contents]),
        parameters=CHANCE.choice([{}, parameters()]),
    )


def random_request():
    """Returns a request of any parts."""
    output = pb.ModelInferRequest.InferRequestedOutputTensor
    return pb.ModelInferRequest(
        model_name=CHANCE.choice(TEXTS),
        model_version=CHANCE.choice(TEXTS),
        id=CHANCE.choice(TEXTS),
        inputs=[tensor() for _ in range(CHANCE.randint(0, 3))],
        outputs=[output(name=name) for name in some(TEXTS, 2)],
        raw_input_contents=some(RAWS, 3),
    )


def valid_request():
    """Returns a request of valid form; its values may be wrong."""
    is_timed = CHANCE.random() < 0.5
    shape = CHANCE.choice([(1, 2), (1, 2), (1, 1, 2), (1, 3, 2), (1, 9, 2)])
    x = np.resize(np.float32(CHANCE.choices(FLOATS[: CHANCE.choice([4, 4, 8])], k=4)), shape)
    time = T0 + np.arange(shape[1] if len(shape) == 3 else 1)[None] if is_timed else None
    return infer(x, "timed" if is_timed else "recurrence", time, is_raw=CHANCE.random() < 0.7)


PARAMETERS = [parameters() for _ in range(200)]
VALID_REQUESTS = [valid_request() for _ in range(200)]
REQUESTS = VALID_REQUESTS + [random_request() for _ in range(300)]
TENSORS = [tensor() for _ in range(200)]


def assemble(request, given_parameters, wrong, part, size):
    """Returns a request with parameters and, as `wrong` says, one part that it should not have."""
    found = pb.ModelInferRequest()
    found.CopyFrom(request)
    for name, value in given_parameters.items():
        found.parameters[name].CopyFrom(value)
    if wrong == "input":
        found.inputs.append(part)
    elif wrong == "raw":
        found.raw_input_contents.append(RAWS[size % len(RAWS)])
    elif wrong == "shape" and found.inputs:
        found.inputs[0].shape.append(SIZES[size % len(SIZES)])
    elif wrong == "parameters" and found.inputs:
        found.inputs[0].MergeFrom(part)
    raw = found.SerializeToString()
    return raw[: size * 3] + raw[size * 3 + 1 :] if wrong == "byte" else raw


requests = st.builds(
    assemble,
    st.sampled_from(VALID_REQUESTS) | st.sampled_from(REQUESTS),
    st.sampled_from(PARAMETERS),
    st.sampled_from(["", "", "", "", "input", "raw", "shape", "parameters", "byte"]),
    st.sampled_from(TENSORS),
    st.integers(0, 60),
)


class FuzzedServer:
    """A server that answers one request after another; its sequences live on between them."""

    def __init__(self):
        self.served = Served(
            recurrence(),
            renamed(recurrence(uses_time=True), "timed", "1"),
            max_resident_sessions=4,
            max_hold_seconds=0,
        )
        self.reasons = {}

    async def answer(self, raw):
        """Answers a request, and counts the result."""
        method = self.served.router.methods[INFER]
        assert isinstance(method, Unary)
        try:
            response = await self.served.router.answer(method, raw, Call())
        except RefusedError as error:
            refusal = Refusal.of(error.status)
            assert refusal.message
            reason = refusal.reason
        else:
            y = y_of(pb.ModelInferResponse.FromString(response))
            assert np.isfinite(y).all()
            reason = "OK"
        self.reasons[reason] = self.reasons.get(reason, 0) + 1


def test_ten_thousand_requests_give_no_fault():
    """No crash and no INTERNAL, and afterwards the server works as before."""
    with asyncio.Runner() as runner:
        fuzzed = runner.run(_make_server())

        @settings(
            max_examples=NUM_EXAMPLES, deadline=None, database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )  # fmt: skip
        @given(requests)
        def fuzz(raw):
            runner.run(fuzzed.answer(raw))

        fuzz()
        assert sum(fuzzed.reasons.values()) >= NUM_EXAMPLES
        assert Reason.INTERNAL not in fuzzed.reasons
        assert fuzzed.reasons["OK"] > NUM_EXAMPLES / 20, fuzzed.reasons
        assert fuzzed.reasons["INVALID_ARGUMENT"] > NUM_EXAMPLES / 20, fuzzed.reasons
        runner.run(_check_soundness(fuzzed.served))


async def _make_server():
    return FuzzedServer()


async def _check_soundness(served):
    """Checks that every sequence can be ended, that nothing is left then, and that the server answers."""
    x = np.float32([[0.5, 0.25]])
    for kind in ("int64_param", "uint64_param", "string_param"):
        for value in VALUES[kind] + [value for of, value in VALID["sequence_id"] if of == kind]:
            for request in (infer(x, sequence_end=True), infer(x, "timed", [[2 * T0]], sequence_end=True)):
                setattr(request.parameters["sequence_id"], kind, value)
                with contextlib.suppress(RefusedError):  # it is not live
                    await served.ask(INFER, request)
    for engine in served.engines:
        assert engine.is_idle
        assert len(engine.sessions) == 0
    response = await served.ask(INFER, infer(x))
    assert y_of(response).tobytes() == Alone(recurrence()).step(x)
