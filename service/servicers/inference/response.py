"""Responses of the Open Inference Protocol, from runs that are done and from errors.

Messages of single steps are used over, which is half the cost of new ones: a response is to be encoded before
the next is asked for.
"""

import struct

import numpy as np
from streamcell.inference import open_inference_pb2 as pb

from service.engine.engine import Engine
from service.errors import StreamcellError
from service.servicers.inference.inference_request import Run
from service.servicers.inference.tensors import FP32, Y

_NUM_DURABLE = "num_durable_steps"


class Replies:
    """The responses to one client."""

    def __init__(self) -> None:
        # By what they are like: an engine that leaves is not to be kept by them, and another one may come
        # as its version.
        self._by_layout: dict[tuple[str, str, int], _Replies] = {}

    def of(self, run: Run) -> pb.ModelStreamInferResponse:
        """Returns the response to a run that is done, without an error; a unary one is its infer_response."""
        engine = run.engine
        layout = engine.name, engine.version, engine.model.num_outputs
        replies = self._by_layout.get(layout)
        if replies is None:
            replies = self._by_layout[layout] = _Replies(engine)
        return replies.of(run)


class _Replies:
    """Those of one model."""

    def __init__(self, engine: Engine) -> None:
        self._name, self._version = engine.name, engine.version
        self._num_outputs = engine.model.num_outputs
        self._values = struct.Struct(f"<{self._num_outputs}f")
        is_stored = engine.sessions.durability.is_enabled
        self._row = _Row(self._response([1, self._num_outputs]))
        self._row_of_sequence = _RowOfSequence(self._response([1, self._num_outputs]), is_stored)

    def of(self, run: Run) -> pb.ModelStreamInferResponse:
        """Returns the response to a run."""
        if not run.rows.is_row:
            return self._of_rows(run)
        y = self._values.pack(*run.y)
        return self._row_of_sequence.of(run, y) if run.key else self._row.of(run, y)

    def _of_rows(self, run: Run) -> pb.ModelStreamInferResponse:
        whole = self._response([1, run.rows.num_steps, self._num_outputs])
        response = whole.infer_response
        response.id = run.name
        response.raw_output_contents.append(np.asarray(run.y, "<f4").tobytes())
        if run.key:
            set_sequence(response.parameters["sequence_id"], run.ask.sequence)
            response.parameters["step_index"].int64_param = run.step_index
            if run.engine.sessions.durability.is_enabled:
                response.parameters[_NUM_DURABLE].int64_param = _num_durable(run)
        return whole

    def _response(self, shape: list[int]) -> pb.ModelStreamInferResponse:
        whole = pb.ModelStreamInferResponse()
        response = whole.infer_response
        response.model_name, response.model_version = self._name, self._version
        response.outputs.add(name=Y, datatype=FP32, shape=shape)
        return whole


class _Row:
    """The responses to single steps, each the same message; what is in it is looked up once."""

    def __init__(self, whole: pb.ModelStreamInferResponse) -> None:
        self._whole = whole
        self._response = whole.infer_response
        self._contents = self._response.raw_output_contents
        self._contents.append(b"")
        self._name = ""

    def of(self, run: Run, y: bytes) -> pb.ModelStreamInferResponse:
        """Returns the response to a step, of which `y` is the prediction."""
        if run.name != self._name:
            self._response.id = self._name = run.name
        self._contents[0] = y
        return self._whole


class _RowOfSequence(_Row):
    """The responses to single steps of sequences."""

    def __init__(self, whole: pb.ModelStreamInferResponse, is_stored: bool) -> None:
        super().__init__(whole)
        # The same entries, made in the same order, in every message: equal responses have equal bytes.
        parameters = self._response.parameters
        self._sequence_id, self._step_index = parameters["sequence_id"], parameters["step_index"]
        self._num_durable = parameters[_NUM_DURABLE] if is_stored else None
        self._sequence: int | str = 0  # of the response before

    def of(self, run: Run, y: bytes) -> pb.ModelStreamInferResponse:
        """Returns the response to a step, of which `y` is the prediction."""
        sequence = run.ask.sequence
        if sequence != self._sequence:
            self._sequence = sequence
            set_sequence(self._sequence_id, sequence)
        self._step_index.int64_param = run.step_index
        if self._num_durable is not None:
            self._num_durable.int64_param = _num_durable(run)
        return super().of(run, y)


def _num_durable(run: Run) -> int:
    """Returns how many steps of a run's session are in the store, on whichever version it is now."""
    return 0 if run.session is None else run.session.current.num_durable_steps


def refusal(
    model_name: str, model_version: str, request_id: str, sequence: int | str | None, error: StreamcellError
) -> pb.ModelStreamInferResponse:
    """Returns a stream's response to a request that was refused; `sequence`: the id it gave, None: none."""
    response = pb.ModelInferResponse(model_name=model_name, model_version=model_version, id=request_id)
    parameters = response.parameters
    parameters["error_code"].int64_param = int(error.code)
    parameters["error_reason"].string_param = error.reason.value
    for name, value in error.metadata.items():
        parameters[name].string_param = value
    if error.retry_delay_seconds:
        parameters["retry_delay_seconds"].double_param = error.retry_delay_seconds
    if sequence is not None:
        set_sequence(parameters["sequence_id"], sequence)
    return pb.ModelStreamInferResponse(error_message=error.message, infer_response=response)


def set_sequence(parameter: pb.InferParameter, sequence: int | str) -> None:
    """Sets a parameter to a sequence's id."""
    if isinstance(sequence, str):
        parameter.string_param = sequence
    elif sequence < 1 << 63:
        parameter.int64_param = sequence
    else:
        parameter.uint64_param = sequence
