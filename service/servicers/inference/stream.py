"""ModelStreamInfer: requests of one client as they come, each with one response, in each sequence's order."""

import asyncio
import contextlib
from collections import deque

from google.protobuf.message import DecodeError
from streamcell.inference import open_inference_pb2 as pb

from service.catalog.versions import NotLoaded
from service.errors import Reason, StreamcellError
from service.rpc.router import Call, Stream
from service.servicers.inference.inference_request import Run
from service.servicers.inference.pipeline import Inference
from service.servicers.inference.response import Replies, refusal
from service.servicers.stream_backpressure import Backpressure, StreamEnd


class InferStream:
    """One client's ModelStreamInfer. An error is a response too, and leaves the stream up."""

    def __init__(self, stream: Stream, call: Call, inference: Inference) -> None:
        self._stream = stream
        self._backpressure = Backpressure(stream, self._handle)
        self._end = StreamEnd(stream, self._is_done)
        self._call = call
        self._inference = inference
        self._replies = Replies()
        self._under_way: dict[Run, None] = {}  # in order of arrival
        self._behind: dict[Run, list[bytes]] = {}  # responses that are to follow that to a run
        self._later: deque[bytes] = deque()  # requests that wait for a model to be loaded
        self._loading: asyncio.Task[None] | None = None

    def receive(self, raw: bytes) -> None:
        """Begins what a message asks, or has it wait while the queue is full."""
        self._backpressure.receive(raw)

    def stop(self, error: StreamcellError | None) -> None:
        """Ends the stream, with `error` if any, once everything received is answered."""
        self._end.begin(error)

    def cancel(self) -> None:
        """Withdraws what has not begun: the client is gone."""
        self._end.abandon()
        self._later.clear()
        if self._loading is not None:
            self._loading.cancel()
        runs, self._under_way = self._under_way, {}
        for run in runs:
            self._inference.withdraw(run)

    def _handle(self, raw: bytes) -> None:
        if self._loading is not None:
            self._later.append(raw)
        elif not self._end.has_begun:
            self._go(raw)

    def _go(self, raw: bytes) -> None:
        run = None
        try:
            run = self._inference.read_bytes(raw, self._call, self._answer)
            self._inference.submit(run)
        except NotLoaded:
            self._stream.pause()
            self._later.appendleft(raw)
            self._loading = asyncio.create_task(self._load(pb.ModelInferRequest.FromString(raw)))
        except StreamcellError as error:
            if error.reason is Reason.DRAINING:
                raise
            if error.reason is Reason.OVERLOADED and run is not None:
                self._backpressure.record_refusal(run.engine, run.rows.num_steps)
            self._refuse(raw, error)
        else:
            self._under_way[run] = None

    async def _load(self, request: pb.ModelInferRequest) -> None:
        """Has a model in memory, then goes on with the request that named it and those that came after it."""
        await self._inference.load(request)
        self._loading = None
        while self._later and self._loading is None:
            self._stream.guard(self._go, self._later.popleft())
        if self._loading is None:
            self._stream.resume()
            self._end.end_if_done()

    def _answer(self, run: Run) -> None:
        behind = None
        # What is answered otherwise than in the order of its session's lane keeps its place all the same.
        if run.error is not None or _is_durable(run):
            behind = self._last_before(run)
        try:
            self._inference.check(run)
            message = self._replies.of(run).SerializeToString()
        except StreamcellError as error:
            message = self._refusal(
                run.engine.name, run.ask.version, run.name, run.ask.sequence or None, error
            )
        del self._under_way[run]
        self._put(message, behind)
        if self._behind:
            for later in self._behind.pop(run, ()):
                self._put(later, behind)
        self._end.end_if_done()

    def _put(self, message: bytes, behind: Run | None) -> None:
        """Sends a message; one of a sequence that is still to be answered something earlier, after that."""
        if behind is None:
            self._stream.send(message)
        else:
            self._behind.setdefault(behind, []).append(message)

    def _refuse(self, raw: bytes, error: StreamcellError) -> None:
        """Answers a request that could not begin; one that is none has no id to tell."""
        request = pb.ModelInferRequest()
        with contextlib.suppress(DecodeError):
            request = pb.ModelInferRequest.FromString(raw)
        sequence = _sequence_of(request)
        message = self._refusal(request.model_name, request.model_version, request.id, sequence, error)
        self._put(message, self._last_of(request.model_name, sequence))

    def _refusal(
        self, name: str, version: str, request_id: str, sequence: int | str | None, error: StreamcellError
    ) -> bytes:
        self._stream.count(error)
        return refusal(name, version, request_id, sequence, error).SerializeToString()

    def _last_before(self, run: Run) -> Run | None:
        """Returns the last of what came before a run of its sequence and is under way still."""
        found = None
        for other in self._under_way:
            if other is run:
                break
            if run.key and other.key == run.key:
                found = other
        return found

    def _last_of(self, model_name: str, sequence: int | str | None) -> Run | None:
        """Returns the last under way of the sequence that a refused request names."""
        if sequence:
            for run in reversed(self._under_way):
                if run.ask.sequence == sequence and run.ask.engine.name == model_name:
                    return run
        return None

    def _is_done(self) -> bool:
        return not self._under_way and self._loading is None


def _is_durable(run: Run) -> bool:
    return run.session is not None and run.session.current.is_durable


def _sequence_of(request: pb.ModelInferRequest) -> int | str | None:
    """Returns the sequence that a refused request names, None where it names none."""
    if "sequence_id" not in request.parameters:
        return None
    parameter = request.parameters["sequence_id"]
    kind = parameter.WhichOneof("parameter_choice")
    sequence = getattr(parameter, kind) if kind is not None else None
    return sequence if isinstance(sequence, int | str) and not isinstance(sequence, bool) else None
