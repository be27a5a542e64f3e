"""Responses of the Open Inference Protocol, from runs that are done and from errors.

Messages of single steps are used over, which is half the cost of new ones: a response is to be encoded before
the next is asked for.
"""

import struct

import numpy as np
from streamcell.inference import open_inference_pb2 as pb

from service.engine import Engine
from service.errors import StreamcellError
from service.servicers.inference_sequences import Run
from service.servicers.inference_tensors import FP32, Y

_NUM_DURABLE = "num_durable_steps"


class Replies:
    """The responses of one model."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._num_outputs = len(engine.manifest.outputs)
        self._values = struct.Struct(f"<{self._num_outputs}f")
        self._is_stored = engine.sessions.is_stored
        # Of one step on its own, and of one step of a sequence; looked into once.
        self._alone = self._response([1, self._num_outputs])
        self._alone.infer_response.raw_output_contents.append(b"")
        self._of_sequence = self._response([1, self._num_outputs])
        self._of_sequence.infer_response.raw_output_contents.append(b"")
        # The same entries, made in the same order, in every message: equal responses have equal bytes.
        parameters = self._of_sequence.infer_response.parameters
        self._sequence_id, self._step_index = parameters["sequence_id"], parameters["step_index"]
        self._num_durable = parameters[_NUM_DURABLE] if self._is_stored else None

    def of(self, run: Run) -> pb.ModelStreamInferResponse:
        """Returns the response to a run that is done, without an error; a unary one is its infer_response."""
        ask = run.ask
        if not ask.rows.is_row:
            return self._of_rows(run)
        whole = self._of_sequence if ask.session_id else self._alone
        response = whole.infer_response
        response.id = ask.id
        response.raw_output_contents[0] = self._values.pack(*run.y)
        if ask.session_id:
            _set_sequence(self._sequence_id, ask.sequence)
            self._step_index.int64_param = run.step_index
            if self._num_durable is not None:
                self._num_durable.int64_param = self._engine.sessions.num_durable.item(run.slot)
        return whole

    def _of_rows(self, run: Run) -> pb.ModelStreamInferResponse:
        ask = run.ask
        whole = self._response([1, ask.rows.num_steps, self._num_outputs])
        response = whole.infer_response
        response.id = ask.id
        response.raw_output_contents.append(np.asarray(run.y, "<f4").tobytes())
        if ask.session_id:
            _set_sequence(response.parameters["sequence_id"], ask.sequence)
            response.parameters["step_index"].int64_param = run.step_index
            if self._is_stored:
                num_durable = self._engine.sessions.num_durable.item(run.slot)
                response.parameters[_NUM_DURABLE].int64_param = num_durable
        return whole

    def _response(self, shape: list[int]) -> pb.ModelStreamInferResponse:
        whole = pb.ModelStreamInferResponse()
        response = whole.infer_response
        response.model_name, response.model_version = self._engine.name, self._engine.version
        response.outputs.add(name=Y, datatype=FP32, shape=shape)
        return whole


def refusal(request: pb.ModelInferRequest, error: StreamcellError) -> pb.ModelStreamInferResponse:
    """Returns a stream's response to a request that was refused."""
    response = pb.ModelInferResponse(
        model_name=request.model_name, model_version=request.model_version, id=request.id
    )
    parameters = response.parameters
    parameters["error_code"].int64_param = int(error.code)
    parameters["error_reason"].string_param = error.reason.value
    for name, value in error.metadata.items():
        parameters[name].string_param = value
    if error.retry_delay_seconds:
        parameters["retry_delay_seconds"].double_param = error.retry_delay_seconds
    if "sequence_id" in request.parameters:
        parameters["sequence_id"].CopyFrom(request.parameters["sequence_id"])
    return pb.ModelStreamInferResponse(error_message=error.message, infer_response=response)


def _set_sequence(parameter: pb.InferParameter, sequence: int | str) -> None:
    if isinstance(sequence, str):
        parameter.string_param = sequence
    elif sequence < 1 << 63:
        parameter.int64_param = sequence
    else:
        parameter.uint64_param = sequence
