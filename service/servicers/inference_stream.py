"""ModelStreamInfer: requests of one client as they come, each with one response, in each sequence's order."""

import functools

from streamcell.inference import open_inference_pb2 as pb

from service.engine import Engine
from service.errors import Reason, StreamcellError
from service.rpc import Call, Stream, parse
from service.servicers.inference_reply import refusal
from service.servicers.inference_sequences import Run
from service.servicers.inference_work import Inference


class InferStream:
    """One client's ModelStreamInfer. An error is a response too, and leaves the stream up."""

    def __init__(self, stream: Stream, call: Call, inference: Inference) -> None:
        self._stream = stream
        self._call = call
        self._inference = inference
        # Under way, in order of arrival, with the refusals that are to follow the answer.
        self._under_way: dict[Run, list[bytes]] = {}
        self._is_stopping = False
        self._full: tuple[Engine, int] | None = None  # who had no room, and for how many steps
        self._last_error: StreamcellError | None = None

    # -- What the front tells ----------------------------------------------------------------------

    def receive(self, raw: bytes) -> None:
        """Takes one request: at once, or in its turn after one that the queue had no room for."""
        if self._full is not None:
            engine, num_steps = self._full
            if not engine.has_room(num_steps):
                self._stream.pause()
                engine.when_room(num_steps, functools.partial(self._take_turn, raw))
                return
            self._full = None
        self._take(raw)

    def _take_turn(self, raw: bytes) -> None:
        self._stream.hand(raw, self._take)
        self._stream.resume()

    def stop(self, error: StreamcellError | None) -> None:
        """Ends the stream once everything received is answered."""
        if not self._is_stopping:  # a client that was done before a drain is not sent elsewhere
            self._last_error = error
        self._is_stopping = True
        self._end_if_done()

    def cancel(self) -> None:
        """Withdraws what has not begun: the client is gone."""
        self._is_stopping = True
        runs, self._under_way = self._under_way, {}
        for run in runs:
            self._inference.withdraw(run)

    # -- Requests and responses --------------------------------------------------------------------

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
                self._full = run.ask.engine, run.ask.rows.num_steps
            self._put([self._refusal(request, error)], self._last_of(request))
        else:
            self._under_way[run] = []

    def _answer(self, request: pb.ModelInferRequest, run: Run) -> None:
        behind = None
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
            if run.ask.session_id and other.key == run.key:
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

    def _end_if_done(self) -> None:
        if not self._under_way:
            self._stream.end(self._last_error)
