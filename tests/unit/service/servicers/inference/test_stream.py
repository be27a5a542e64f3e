"""ModelStreamInfer: one response to every request, in order within a sequence; errors, ends, full queues."""

import numpy as np
import pytest

from service import errors
from tests.fakes import Alone, Served, ending, recurrence, room, turn
from tests.inference import SERVICE, infer, next_response, talk, y_of

X = np.random.default_rng(8).standard_normal((40, 2)).astype(np.float32)
STREAM = f"{SERVICE}/ModelStreamInfer"


@pytest.fixture
async def served():
    """One model, served."""
    return Served()


class TestOrder:
    """Requests sent ahead of their answers."""

    async def test_many_sequences_share_a_stream(self, served):
        """Each sequence is the artifact folded; ids match responses to requests."""
        stream = served.stream(STREAM)
        sequences = {number: Alone(recurrence()) for number in range(1, 11)}
        for at, x in enumerate(X):
            requests = [
                infer([x * number], sequence_id=number, sequence_start=at == 0, request_id=str(number))
                for number in sequences
            ]
            for found in await talk(stream, *requests):
                assert not found.error_message
                number = int(found.infer_response.id)
                assert y_of(found.infer_response).tobytes() == sequences[number].step(X[at] * number)

    async def test_requests_sent_ahead_are_answered_in_order(self, served):
        """Single steps and several, ends and starts of one sequence are answered in the order sent."""
        stream = served.stream(STREAM)
        requests = [
            infer(X[:1], sequence_id="a", sequence_start=True, request_id="0"),
            infer(X[None, 1:9], sequence_id="a", request_id="1"),
            infer(X[9:10], sequence_id="a", sequence_end=True, request_id="2"),
            infer(X[10:11], sequence_id="a", sequence_start=True, request_id="3"),
            infer(X[11:12], sequence_id="a", request_id="4"),
        ]
        found = await talk(stream, *requests)
        assert [each.infer_response.id for each in found] == list("01234")
        alone, after = Alone(recurrence()), Alone(recurrence())
        assert [y_of(each.infer_response).tobytes() for each in found] == [
            alone.step(X[0]), alone.fold(X[1:9]), alone.step(X[9]), after.step(X[10]), after.step(X[11]),
        ]  # fmt: skip

    async def test_a_time_out_takes_its_turn_too(self):
        """A request that timed out is answered after the earlier requests and before the later ones."""
        served = Served(max_batch_steps=1, max_piece_steps=1)
        stream = served.stream(STREAM)
        num_steps = 30  # a turn of the loop and a cell call each, in which 1 µs passes
        found = await talk(
            stream,
            infer(np.tile(X[:1], (1, num_steps, 1)), sequence_id=7, sequence_start=True, request_id="0"),
            infer(X[1:2], sequence_id=7, timeout=1, request_id="1"),
            infer([[1.0]], sequence_id=7, request_id="2"),
            infer(X[1:2], sequence_id=7, request_id="3"),
        )
        assert [each.infer_response.id for each in found] == list("0123")
        assert found[1].infer_response.parameters["error_reason"].string_param == "TIMED_OUT"
        assert found[3].infer_response.parameters["step_index"].int64_param == num_steps


class TestErrors:
    """Responses to requests that are refused or fail."""

    async def test_errors_take_their_turn_and_leave_the_stream_up(self, served):
        """A refused request is answered behind the earlier ones of its sequence, and the next one runs."""
        stream = served.stream(STREAM)
        bad = infer([[1, 2, 3]], sequence_id=7, request_id="bad")
        found = await talk(
            stream,
            infer(X[:1], sequence_id=7, sequence_start=True, request_id="0"),
            bad,
            infer(X[1:2], sequence_id=7, step_index=9, request_id="gap"),
            infer(X[1:2], sequence_id=7, request_id="1"),
            bad,
        )
        assert [each.infer_response.id for each in found] == ["0", "bad", "gap", "1", "bad"]
        assert [bool(each.error_message) for each in found] == [False, True, True, False, True]
        parameters = found[1].infer_response.parameters
        assert parameters["error_code"].int64_param == 3
        assert parameters["error_reason"].string_param == "INVALID_ARGUMENT"
        assert (parameters["field"].string_param, parameters["sequence_id"].int64_param) == ("x", 7)
        assert found[2].infer_response.parameters["expected_step_index"].string_param == "1"
        reasons = sorted(error.reason for _, error in served.errors)
        assert reasons == ["INVALID_ARGUMENT", "INVALID_ARGUMENT", "STEP_GAP"]

    async def test_errors_outside_the_sequence_are_answered_at_once(self, served):
        """A refused request of another sequence, of none, or of another model is answered at once."""
        stream = served.stream(STREAM)
        stream.receive(infer(X[:1], sequence_id=7, sequence_start=True, request_id="0").SerializeToString())
        for request in (
            infer([[1.0]], request_id="none"),
            infer([[1.0]], sequence_id=8, request_id="8"),
            infer([[1.0]], sequence_id=7, model="unknown", request_id="unknown"),
        ):
            stream.receive(request.SerializeToString())
        found = [await next_response(stream) for _ in range(4)]
        assert [each.infer_response.id for each in found] == ["none", "8", "unknown", "0"]

    async def test_bytes_that_are_no_request_are_answered(self, served):
        """The response says that the bytes cannot be parsed, and the stream goes on."""
        stream = served.stream(STREAM)
        stream.receive(b"\xff\xff")
        assert "cannot be parsed" in (await next_response(stream)).error_message
        (found,) = await talk(stream, infer(X[:1]))
        assert not found.error_message

    async def test_a_fault_gives_an_id_alone(self, served):
        """A fault of the model is INTERNAL, gives an id alone, and leaves the stream up."""
        stream = served.stream(STREAM)
        (found,) = await talk(stream, infer([[31337.0, 0]]))
        assert found.infer_response.parameters["error_reason"].string_param == errors.Reason.INTERNAL
        assert "sealed words" not in str(found)
        (after,) = await talk(stream, infer(X[:1]))
        assert not after.error_message


class TestEnds:
    """A half-close, a drain, a client that goes."""

    async def test_a_client_that_is_done_gets_all_its_answers(self, served):
        """After a half-close the stream ends with OK once everything is answered."""
        stream = served.stream(STREAM)
        for number in range(5):
            stream.receive(infer(X[number : number + 1], request_id=str(number)).SerializeToString())
        stream.half_close()
        assert [(await next_response(stream)).infer_response.id for _ in range(5)] == list("01234")
        assert await ending(stream) is None
        stream.receive(infer(X[:1]).SerializeToString())
        assert stream.take() is None

    async def test_a_drain_answers_the_requests_in_flight(self, served):
        """The stream then ends with DRAINING; later requests are refused."""
        stream, late = served.stream(STREAM), served.stream(STREAM)
        stream.receive(infer(X[:1], sequence_id=7, sequence_start=True).SerializeToString())
        served.catalog.is_draining = True
        late.receive(infer(X[:1], sequence_id=7).SerializeToString())
        assert (await ending(late)).reason == "DRAINING"
        served.router.drain()
        stream.receive(infer(X[:1], sequence_id=7).SerializeToString())
        assert not (await next_response(stream)).error_message
        assert (await ending(stream)).reason == "DRAINING"

    async def test_requests_that_have_not_begun_are_withdrawn_with_their_client(self, served):
        """No session is left, and no response is sent."""
        stream = served.stream(STREAM)
        for number in range(5):
            request = infer(X[:1], sequence_id=number, sequence_start=bool(number), sequence_end=number == 2)
            stream.receive(request.SerializeToString())
        stream.receive(infer(X[:1], sequence_id=2, sequence_start=True).SerializeToString())
        served.router.close(stream)
        await turn()
        await turn()
        assert len(served.engines[0].sessions) == 0
        assert stream.take() is None


class TestFullQueue:
    """The stream while the queue is full."""

    async def test_a_full_queue_refuses_once_and_then_is_waited_for(self):
        """The request without room is OVERLOADED; the requests behind it wait until there is room."""
        served = Served(max_queue_steps=2)
        stream = served.stream(STREAM)
        requests = [
            infer(X[at : at + 1], sequence_id=at + 1, sequence_start=True, request_id=str(at))
            for at in range(6)
        ]
        for request in requests[:4]:
            stream.receive(request.SerializeToString())
        assert stream.is_full
        found = [await next_response(stream) for _ in range(4)]
        assert [each.infer_response.id for each in found] == ["2", "0", "1", "3"]
        parameters = found[0].infer_response.parameters
        assert parameters["error_reason"].string_param == "OVERLOADED"
        assert parameters["retry_delay_seconds"].double_param > 0
        await room(stream)
        later = await talk(stream, *requests[4:])
        assert [each.infer_response.id for each in later] == ["4", "5"]
