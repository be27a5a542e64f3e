"""ModelStreamInfer: a client's requests as they come, each with one response, in order within a sequence."""

import asyncio
import contextlib
from collections import deque

from google.protobuf.message import DecodeError
from streamcell.inference import open_inference_pb2 as pb

from service.catalog.versions import NotLoaded
from service.errors import Reason, StreamcellError
from service.rpc.methods import Call
from service.rpc.stream import Stream
from service.servicers.inference.inference_request import InferenceRequest
from service.servicers.inference.pipeline import InferencePipeline
from service.servicers.inference.response import ResponseBuilder, error_response
from service.servicers.stream_backpressure import Backpressure, StreamEnd


class InferStream:
    """One client's ModelStreamInfer. An error is a response too, and leaves the stream up."""

    def __init__(self, stream: Stream, call: Call, pipeline: InferencePipeline) -> None:
        self._stream = stream
        self._backpressure = Backpressure(stream, self._receive, call.account_number)
        self._end = StreamEnd(stream, self._is_done)
        self._call = call
        self._pipeline = pipeline
        self._responses = ResponseBuilder()
        self._in_flight: dict[InferenceRequest, None] = {}  # in the order in which they came
        # By request, the responses of its sequence that are ready and follow the response to the request.
        self._following: dict[InferenceRequest, list[bytes]] = {}
        self._unread: deque[bytes] = deque()  # messages that wait until a model is loaded
        self._loading: asyncio.Task[None] | None = None

    def receive(self, raw: bytes) -> None:
        """Begins a message's request, or delays the message while the queue is full."""
        self._backpressure.receive(raw)

    def stop(self, error: StreamcellError | None) -> None:
        """Ends the stream, with `error` if any, once everything received is answered."""
        self._end.begin(error)

    def cancel(self) -> None:
        """Withdraws all requests: the client is gone."""
        self._end.abandon()
        self._unread.clear()
        if self._loading is not None:
            self._loading.cancel()
        requests, self._in_flight = self._in_flight, {}
        for request in requests:
            self._pipeline.withdraw(request)

    def _receive(self, raw: bytes) -> None:
        if self._loading is not None:
            self._unread.append(raw)
        elif not self._end.has_begun:
            self._begin(raw)

    def _begin(self, raw: bytes) -> None:
        request = None
        try:
            request = self._pipeline.read_bytes(raw, self._call, self._answer)
            self._pipeline.submit(request)
        except NotLoaded:
            self._stream.pause()
            self._unread.appendleft(raw)
            self._loading = asyncio.create_task(self._load(pb.ModelInferRequest.FromString(raw)))
        except StreamcellError as error:
            if error.reason is Reason.DRAINING:
                raise
            if error.reason is Reason.OVERLOADED and request is not None:
                self._backpressure.record_refusal(request.engine, request.rows.num_steps)
            self._refuse(raw, error)
        else:
            self._in_flight[request] = None
            self._backpressure.record(request.engine)

    async def _load(self, message: pb.ModelInferRequest) -> None:
        """Loads a message's model, then begins that message's request and those that came after it."""
        await self._pipeline.load(message)
        self._loading = None
        while self._unread and self._loading is None:
            self._stream.guard(self._begin, self._unread.popleft())
        if self._loading is None:
            self._stream.resume()
            self._end.end_if_done()

    def _is_done(self) -> bool:
        return not self._in_flight and self._loading is None

    def _answer(self, request: InferenceRequest) -> None:
        earlier = None
        # Errors, and answers of durable sessions, may come before those of earlier requests of the sequence.
        if request.error is not None or _is_durable(request):
            earlier = self._last_in_flight_before(request)
        if request.error is None:
            message = self._responses.build(request).SerializeToString()
        else:
            self._pipeline.count_failure(request)
            message = self._error_response(
                request.error,
                model_name=request.engine.name,
                model_version=request.parameters.version,
                request_id=request.request_id,
                sequence=request.parameters.sequence or None,
            )
        del self._in_flight[request]
        self._send_after(earlier, message)
        if self._following:
            for following in self._following.pop(request, ()):
                self._send_after(earlier, following)
        self._end.end_if_done()

    def _refuse(self, raw: bytes, error: StreamcellError) -> None:
        """Answers a request that could not begin; bytes that are no request are answered without an id."""
        message = pb.ModelInferRequest()
        with contextlib.suppress(DecodeError):
            message = pb.ModelInferRequest.FromString(raw)
        sequence = _sequence_of(message)
        response = self._error_response(
            error,
            model_name=message.model_name,
            model_version=message.model_version,
            request_id=message.id,
            sequence=sequence,
        )
        self._send_after(self._last_in_flight_of(message.model_name, sequence), response)

    def _error_response(
        self,
        error: StreamcellError,
        *,
        model_name: str,
        model_version: str,
        request_id: str,
        sequence: int | str | None,
    ) -> bytes:
        self._stream.count(error)
        return error_response(
            error,
            model_name=model_name,
            model_version=model_version,
            request_id=request_id,
            sequence=sequence,
        ).SerializeToString()

    def _send_after(self, earlier: InferenceRequest | None, message: bytes) -> None:
        """Sends a response: at once, or after the response to an earlier request of the sequence."""
        if earlier is None:
            self._stream.send(message)
        else:
            self._following.setdefault(earlier, []).append(message)

    def _last_in_flight_before(self, request: InferenceRequest) -> InferenceRequest | None:
        """Returns the last request of the same sequence that came before a request and is in flight."""
        found = None
        for other in self._in_flight:
            if other is request:
                break
            if request.key and other.key == request.key:
                found = other
        return found

    def _last_in_flight_of(self, model_name: str, sequence: int | str | None) -> InferenceRequest | None:
        """Returns the last request in flight of a sequence, if there is a sequence."""
        if sequence:
            for request in reversed(self._in_flight):
                if request.parameters.sequence == sequence and request.parameters.engine.name == model_name:
                    return request
        return None


def _is_durable(request: InferenceRequest) -> bool:
    session = request.session
    if session is None or not session.engine.sessions.durability.is_enabled:  # nearly always
        return False
    return session.current.is_durable


def _sequence_of(message: pb.ModelInferRequest) -> int | str | None:
    """Returns the sequence id that a message gives, None if it gives none."""
    if "sequence_id" not in message.parameters:
        return None
    parameter = message.parameters["sequence_id"]
    kind = parameter.WhichOneof("parameter_choice")
    sequence = getattr(parameter, kind) if kind is not None else None
    return sequence if isinstance(sequence, int | str) and not isinstance(sequence, bool) else None
