"""The Open Inference Protocol, over real gRPC."""

import asyncio

import numpy as np
import pytest
from google.protobuf.message import Message
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from streamcell.inference import open_inference_pb2 as oip
from streamcell.inference import open_inference_pb2_grpc as stubs
from streamcell.v1 import streamcell_pb2 as pb

from tests.inference import infer, y_of
from tests.integration.conftest import BOUND_SECONDS, folded, inputs, refusal

MODEL = "mackey-glass"
T0 = 1_420_070_400 * 10**9


@pytest.fixture
def stub(peer):
    """The protocol's stub for the peer."""
    return stubs.GRPCInferenceServiceStub(peer.channel)


def row(x, **parameters):
    """Returns a request of one step."""
    return infer([x], MODEL, **parameters)


async def response_of(call):
    """Returns a stream's next message; fails if the stream has ended."""
    message = await asyncio.wait_for(call.read(), BOUND_SECONDS)
    assert isinstance(message, oip.ModelStreamInferResponse), "the stream ended"
    return message


class TestRequests:
    """Requests and their answers."""

    async def test_a_client_learns_all_it_needs_before_it_begins(self, stub):
        """The server answers whether it is live and ready, and lists models, tensors and configuration."""
        assert (await stub.ServerLive(oip.ServerLiveRequest())).live
        assert (await stub.ServerReady(oip.ServerReadyRequest())).ready
        assert (await stub.ServerMetadata(oip.ServerMetadataRequest())).name == "streamcell"
        models = (await stub.RepositoryIndex(oip.RepositoryIndexRequest())).models
        assert [(each.name, each.version, each.state) for each in models] == [
            ("mackey-glass", "1", "READY"),
            ("nyc-taxi", "1", "READY"),
        ]
        for model in models:
            assert (await stub.ModelReady(oip.ModelReadyRequest(name=model.name))).ready
        taxi = await stub.ModelMetadata(oip.ModelMetadataRequest(name="nyc-taxi"))
        assert [tensor.name for tensor in taxi.inputs] == ["x", "time"]
        config = (await stub.ModelConfig(oip.ModelConfigRequest(name="nyc-taxi"))).config
        assert (config.max_batch_size, config.WhichOneof("scheduling_choice")) == (1, "sequence_batching")

    @pytest.mark.parametrize("is_raw", [True, False])
    @pytest.mark.parametrize("sequence", [5, "five"])
    async def test_a_sequence_gives_what_the_artifact_gives(self, stub, mackey_glass, is_raw, sequence):
        """The answers to a sequence's unary requests are the artifact folded over the inputs."""
        x = inputs(seed=11, num_steps=30)
        got = []
        for number, values in enumerate(x):
            request = row(
                values, is_raw=is_raw, sequence_id=sequence,
                sequence_start=number == 0, sequence_end=number == len(x) - 1,
            )  # fmt: skip
            got.append(y_of(await stub.ModelInfer(request))[0])
        assert np.array_equal(np.array(got), folded(mackey_glass, x))
        gone = await refusal(stub.ModelInfer(row(x[0], sequence_id=sequence)))
        assert (gone.code, gone.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")

    async def test_many_steps_in_one_request(self, stub, mackey_glass):
        """An input of shape [1, T, F], in a sequence or alone, gives the predictions of single steps."""
        x = inputs(seed=12, num_steps=300)
        for parameters in ({}, {"sequence_id": 1, "sequence_start": True}):
            y = y_of(await stub.ModelInfer(infer(x[None], MODEL, **parameters)))
            assert np.array_equal(y[0], folded(mackey_glass, x))

    async def test_fifty_sequences_at_once_give_the_same_bits_as_each_alone(self, stub, mackey_glass):
        """Five streams carry ten sequences each."""
        xs = {number: inputs(number, num_steps=40) for number in range(1, 51)}

        async def run(numbers):
            call = stub.ModelStreamInfer()
            found = {number: [] for number in numbers}
            for at in range(40):
                for number in numbers:
                    flags = {"sequence_start": at == 0, "sequence_end": at == 39}
                    await call.write(row(xs[number][at], sequence_id=number, request_id=str(number), **flags))
                for _ in numbers:
                    response = await response_of(call)
                    assert not response.error_message
                    found[int(response.infer_response.id)].append(y_of(response.infer_response)[0])
            await call.done_writing()
            assert await call.read() is aio.EOF
            return found

        for found in await asyncio.gather(*(run(range(first, first + 10)) for first in range(1, 51, 10))):
            for number, y in found.items():
                assert np.array_equal(np.array(y), folded(mackey_glass, xs[number]))

    async def test_requests_sent_ahead_are_answered_in_order(self, stub, mackey_glass):
        """A stream gets more requests than may lack an answer; each is answered once, in order."""
        x = inputs(seed=13, num_steps=600)
        call = stub.ModelStreamInfer()

        async def write():
            for number, values in enumerate(x):
                await call.write(
                    row(values, sequence_id=3, sequence_start=number == 0, request_id=str(number))
                )
            await call.done_writing()

        writer = asyncio.create_task(write())
        found = [(await response_of(call)).infer_response for _ in x]
        await writer
        assert [response.id for response in found] == [str(number) for number in range(600)]
        assert np.array_equal(np.concatenate([y_of(each) for each in found]), folded(mackey_glass, x))

    async def test_a_duplicate_with_an_index_gets_the_same_bytes(self, stub):
        """Duplicates may be unary or on a stream; the state moves once."""
        start = row([0.9], sequence_id=8, sequence_start=True, step_index=0)
        again = row([0.8], sequence_id=8, step_index=1)
        for request in (start, again):
            found = {(await stub.ModelInfer(request)).SerializeToString() for _ in range(3)}
            assert len(found) == 1
        call = stub.ModelStreamInfer()
        for _ in range(2):
            await call.write(again)
        assert {(await response_of(call)).infer_response.SerializeToString() for _ in range(2)} == found
        gap = await refusal(stub.ModelInfer(row([0.8], sequence_id=8, step_index=9)))
        assert (gap.code, gap.reason, gap.metadata["expected_step_index"]) == (
            "FAILED_PRECONDITION",
            "STEP_GAP",
            "2",
        )

    async def test_a_step_without_a_time_follows_the_last_step(self, stub):
        """On a model with time, the first step must have a time and later steps may."""
        begin = infer([[10_000]], "nyc-taxi", [[T0]], sequence_id=1, sequence_start=True)
        first = y_of(await stub.ModelInfer(begin))
        implied = y_of(await stub.ModelInfer(infer([[11_000]], "nyc-taxi", sequence_id=1)))
        times = [[T0, T0 + 1800 * 10**9]]
        both = y_of(await stub.ModelInfer(infer([[[10_000], [11_000]]], "nyc-taxi", times)))
        assert np.array_equal(both[0], np.concatenate([first, implied]))


def bare(name="x", datatype="FP32", shape=(1, 1), raw=(b"\0\0\0\0",), model=MODEL, **fields):
    """Returns a request with one input of any kind."""
    request = oip.ModelInferRequest(model_name=model, raw_input_contents=raw, **fields)
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


def with_contents(request, **contents):
    """Returns a request whose first input has these contents."""
    request.inputs[0].contents.MergeFrom(oip.InferTensorContents(**contents))
    return request


MALFORMED = {
    "a wrong width": (bare(shape=(1, 2), raw=[bytes(8)]), "INVALID_ARGUMENT", "x", "[1, 1] for one step"),
    "a batch of two": (bare(shape=(2, 1), raw=[bytes(8)]), "INVALID_ARGUMENT", "x", "[1, 1] for one step"),
    "no batch": (bare(shape=(1,)), "INVALID_ARGUMENT", "x", "[1, T, 1] for T of them"),
    "no steps": (bare(shape=(1, 0, 1), raw=[b""]), "INVALID_ARGUMENT", "x", "[1, 0, 1]"),
    "a wrong type": (bare(datatype="FP64", raw=[bytes(8)]), "INVALID_ARGUMENT", "x", "FP32 is expected"),
    "an unknown name": (bare(name="input_1"), "INVALID_ARGUMENT", "inputs", "takes x (FP32)"),
    "time where there is none": (
        infer([[1.0]], MODEL, time=[[T0]], sequence_id=77), "INVALID_ARGUMENT", "inputs", "takes x (FP32)",
    ),
    "too few bytes": (bare(raw=[b"\0\0\0"]), "INVALID_ARGUMENT", "x", "3 bytes in raw_input_contents; 4"),
    "too many bytes": (bare(raw=[bytes(8)]), "INVALID_ARGUMENT", "x", "8 bytes in raw_input_contents; 4"),
    "contents twice": (
        with_contents(bare(), fp32_contents=[1]), "INVALID_ARGUMENT", "x", "given twice",
    ),
    "contents not at all": (bare(raw=()), "INVALID_ARGUMENT", "x", "expected in fp32_contents"),
    "contents of another type": (
        with_contents(bare(raw=()), fp64_contents=[1]), "INVALID_ARGUMENT", "x", "expected in fp32_contents",
    ),
    "too many contents": (
        with_contents(bare(raw=()), fp32_contents=[1, 2]), "INVALID_ARGUMENT", "x", "takes 1 a step",
    ),
    "more raw contents than inputs": (
        bare(raw=[bytes(4)] * 2), "INVALID_ARGUMENT", "raw_input_contents", "2 entries for 1 inputs",
    ),
    "not a number": (infer([[np.nan]], MODEL), "INVALID_ARGUMENT", "x", "must be finite"),
    "an unknown output": (
        bare(outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="state")]),
        "INVALID_ARGUMENT", "outputs", "the only one is 'y'",
    ),
    "a start without a sequence": (
        infer([[1.0]], MODEL, sequence_start=True), "INVALID_ARGUMENT", "sequence_start", "sequence_id",
    ),
    "an end without a sequence": (
        infer([[1.0]], MODEL, sequence_end=True), "INVALID_ARGUMENT", "sequence_end", "sequence_id",
    ),
    "a start that is not the first": (
        infer([[1.0]], MODEL, sequence_id=77, sequence_start=True, step_index=4),
        "INVALID_ARGUMENT", "step_index", "starts at step_index 0",
    ),
    "a flag that is a number": (
        infer([[1.0]], MODEL, sequence_id=77, sequence_end=1),
        "INVALID_ARGUMENT", "sequence_end", "bool_param",
    ),
    "two million steps": (
        bare(shape=(1, 2_000_000, 1), raw=[b""]), "INVALID_ARGUMENT", None, "2000000 steps in one message",
    ),
    "no model": (bare(model=""), "INVALID_ARGUMENT", "model_name", "is required"),
    "an unknown model": (bare(model="lstm"), "NOT_FOUND", None, "no model 'lstm'; served: mackey-glass"),
    "an unknown version": (bare(model_version="2"), "NOT_FOUND", None, "no model 'mackey-glass/2'"),
}  # fmt: skip


class TestBadInput:
    """Requests that are refused."""

    async def test_malformed_requests_leave_the_sequence_where_it_stood(self, stub, mackey_glass):
        """Each error has its code, names the tensor and says what was expected; a stream stays open."""
        x = inputs(seed=14, num_steps=2)
        await stub.ModelInfer(row(x[0], sequence_id=77, sequence_start=True))
        call = stub.ModelStreamInfer()
        for name, (good, code, field, says) in MALFORMED.items():
            request = oip.ModelInferRequest()
            request.CopyFrom(good)
            is_of_sequence = "sequence_id" in request.parameters or not request.parameters
            if is_of_sequence:
                request.parameters["sequence_id"].int64_param = 77
            found = await refusal(stub.ModelInfer(request))
            assert found.code == code, name
            assert says in found.message, name
            assert found.metadata.get("field") == field, name
            assert found.reason
            await call.write(request)
            streamed = await response_of(call)
            assert streamed.error_message == found.message, name
            assert streamed.infer_response.parameters["error_reason"].string_param == found.reason, name
        await call.write(row(x[1], sequence_id=77))
        after = (await response_of(call)).infer_response
        assert np.array_equal(y_of(after)[0], folded(mackey_glass, x)[1])
        assert after.parameters["step_index"].int64_param == 1

    async def test_two_million_steps_do_not_fit_a_message(self, stub):
        """Their contents have more bytes than a message may have."""
        found = await refusal(stub.ModelInfer(infer(np.zeros((1, 2_000_000, 1)), MODEL)))
        assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")

    async def test_other_methods_of_triton_are_unimplemented(self, peer):
        """Examples are loading models, shared memory and traces."""
        call = peer.channel.unary_unary(
            "/inference.GRPCInferenceService/RepositoryModelLoad",
            request_serializer=Message.SerializeToString,
            response_deserializer=oip.RepositoryIndexResponse.FromString,
        )
        assert (await refusal(call(oip.RepositoryIndexRequest()))).code == "UNIMPLEMENTED"


class TestRestOfTheServer:
    """The protocol beside metrics, health, the Streamcell API, drains and bounds."""

    async def test_statistics_agree_with_prometheus(self, own_peer):
        """The figures of both APIs are equal."""
        peer, stub = own_peer, stubs.GRPCInferenceServiceStub(own_peer.channel)
        x = inputs(seed=15, num_steps=20)
        await stub.ModelInfer(infer(x[None], MODEL, sequence_id=1, sequence_start=True))
        await stub.ModelInfer(row(x[0], sequence_id=1, step_index=20))
        await stub.ModelInfer(row(x[0], sequence_id=1, step_index=20))
        await refusal(stub.ModelInfer(row(x[0], sequence_id=2)))
        session_id = await peer.open()
        await peer.stub.Step(pb.StepRequest(session_id=session_id, x=[0.5]))
        await peer.stub.Prime(pb.PrimeRequest(session_id=session_id, x=[0.5] * 7))
        request = oip.ModelStatisticsRequest(name=MODEL)
        (found,) = (await stub.ModelStatistics(request)).model_stats
        samples = await peer.samples()

        def sample(name):
            return samples[f"streamcell_{name}", (("model", MODEL), ("version", "1"))]

        stats = found.inference_stats
        assert found.inference_count == sample("steps_total") == 29
        assert found.execution_count == sample("batch_steps_count")
        assert stats.success.count == stats.queue.count == sample("step_seconds_count") == 22
        assert stats.compute_infer.count == sample("step_compute_seconds_count") == 22
        assert stats.fail.count == sample("inference_failed_seconds_count") == 1
        assert stats.cache_hit.count == sample("repeated_steps_total") == 1
        assert stats.success.ns == round(sample("step_seconds_sum") * 1e9) > 0
        assert found.last_inference > 0

    async def test_health_knows_the_service(self, peer):
        """Load balancers may ask for the service by name."""
        request = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
        found = await health_pb2_grpc.HealthStub(peer.channel).Check(request)
        assert found.status == health_pb2.HealthCheckResponse.SERVING

    async def test_sequences_share_the_engine_with_sessions(self, peer, stub, mackey_glass):
        """A sequence is a session, which the Streamcell API can read."""
        x = inputs(seed=16, num_steps=10)
        await stub.ModelInfer(infer(x[None], MODEL, sequence_id=4, sequence_start=True))
        request = pb.GetSessionRequest(session_id="inference:mackey-glass:int:4")
        assert (await peer.stub.GetSession(request)).session.next_step_index == 10

    async def test_a_drain_answers_the_requests_in_flight(self, start):
        """A stream's requests are answered, then the stream ends with UNAVAILABLE."""
        peer = await start()
        stub = stubs.GRPCInferenceServiceStub(peer.channel)
        call = stub.ModelStreamInfer()
        await call.write(row([0.9], sequence_id=1, sequence_start=True))
        assert not (await response_of(call)).error_message
        assert await peer.server.drain()
        found = await refusal(call.read())
        assert (found.code, found.reason) == ("UNAVAILABLE", "DRAINING")

    async def test_the_bound_on_sessions_holds_for_sequences(self, start):
        """The error is SESSIONS_FULL, as for sessions."""
        peer = await start(max_resident_sessions=1)
        stub = stubs.GRPCInferenceServiceStub(peer.channel)
        await stub.ModelInfer(row([0.9], sequence_id=1, sequence_start=True))
        found = await refusal(stub.ModelInfer(row([0.9], sequence_id=2, sequence_start=True)))
        assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "SESSIONS_FULL")
