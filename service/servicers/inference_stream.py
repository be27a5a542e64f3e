"""ModelStreamInfer: requests of one client as they come, each with one response, in each sequence's order."""

import functools

from streamcell.inference import open_inference_pb2 as pb

from service.errors import Reason, StreamcellError
from service.rpc import Call, Stream, parse
from service.servicers.inference_reply import refusal
from service.servicers.inference_sequences import Run
from service.servicers.inference_work import Inference
from service.servicers.turns import Turns


class InferStream(Turns):
    """One client's ModelStreamInfer. An error is a response too, and leaves the stream up."""

    def __init__(self, stream: Stream, call: Call, inference: Inference) -> None:
        super().__init__(stream)
        self._call = call
        self._inference = inference
        # Under way, in order of arrival, with the refusals that are to follow the answer.
        self._under_way: dict[Run, list[bytes]] = {}

    def cancel(self) -> None:
        """Withdraws what has not begun: the client is gone."""
        self._is_stopping = True
        runs, self._under_way = self._under_way, {}
        for run in runs:
            self._inference.withdraw(run)

    def _take(self, raw: bytes) -> None:
        if self._is_stopping:
            return
        request, run = pb.ModelInferRequest(), None
        try:
            request = parse(pb.ModelInferRequest, raw)
            run = self._inference.read(request, self._call, functools.partial(self._answer, request))
            self._inference.submit(run)
        except StreamcellError as error:
            if error.reason is Reason.DRAINING:
                raise
            if error.reason is Reason.OVERLOADED and run is not None:
                self._refused = run.ask.engine, run.ask.rows.num_steps
            self._put([self._refusal(request, error)], self._last_of(request))
        else:
            self._under_way[run] = []

    def _answer(self, request: pb.ModelInferRequest, run: Run) -> None:
        behind = None
        # What is answered otherwise than in the order of its session's lane: keeps its place all the same.
        if run.key and run.ask.engine.sessions.is_durable.item(run.slot):
            behind = self._last_before(run)
        try:
            message = self._inference.response(run).SerializeToString()
        except StreamcellError as error:
            message = self._refusal(request, error)
            behind = self._last_before(run)
        self._put([message, *self._under_way.pop(run)], behind)
        if self._is_stopping:
            self._end_if_done()

    def _put(self, messages: list[bytes], behind: Run | None) -> None:
        """Sends messages; those of a sequence that is still to be answered something earlier, after that."""
        if behind is not None:
            self._under_way[behind] += messages
            return
        for message in messages:
            self._stream.send(message)

    def _refusal(self, request: pb.ModelInferRequest, error: StreamcellError) -> bytes:
        self._stream.count(error)
        return refusal(request, error).SerializeToString()

    def _last_before(self, run: Run) -> Run | None:
        """Returns what came before a run of its sequence and is under way still: it was withdrawn."""
        found = None
        for other in self._under_way:
            if other is run:
                break
            if run.key and other.key == run.key:
                found = other
        return found

    def _last_of(self, request: pb.ModelInferRequest) -> Run | None:
        """Returns the last under way of the sequence that a refused request names."""
        if not self._under_way or "sequence_id" not in request.parameters:
            return None
        parameter = request.parameters["sequence_id"]
        kind = parameter.WhichOneof("parameter_choice")
        sequence = getattr(parameter, kind) if kind is not None else None
        for run in reversed(self._under_way):
            is_of_sequence = run.ask.session_id and run.ask.sequence == sequence
            if is_of_sequence and run.ask.engine.name == request.model_name:
                return run
        return None

    def _is_done(self) -> bool:
        return not self._under_way
