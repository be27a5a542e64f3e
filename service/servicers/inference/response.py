"""Responses of the Open Inference Protocol, from requests that are done and from errors.

Messages of single steps are used again, which is half the cost of new ones: encode a response before you
build the next.
"""

import struct

import numpy as np
from streamcell.inference import open_inference_pb2 as pb

from service.engine.engine import Engine
from service.errors import StreamcellError
from service.servicers.inference.inference_request import InferenceRequest
from service.servicers.inference.tensors import FP32, Y

_NUM_DURABLE = "num_durable_steps"


class ResponseBuilder:
    """Builds the responses to one client."""

    def __init__(self) -> None:
        # By layout, not by engine: a builder must not keep an engine that leaves in memory, and another
        # artifact may come as the same version.
        self._by_layout: dict[tuple[str, str, int], _ModelResponseBuilder] = {}

    def build(self, request: InferenceRequest) -> pb.ModelStreamInferResponse:
        """Returns the response to a request that is done without an error.

        A unary response is the `infer_response` in it.
        """
        engine = request.engine
        layout = engine.name, engine.version, engine.model.num_outputs
        builder = self._by_layout.get(layout)
        if builder is None:
            builder = self._by_layout[layout] = _ModelResponseBuilder(engine)
        return builder.build(request)


class _ModelResponseBuilder:
    """Builds the responses of one model."""

    def __init__(self, engine: Engine) -> None:
        self._name, self._version = engine.name, engine.version
        self._num_outputs = engine.model.num_outputs
        self._values = struct.Struct(f"<{self._num_outputs}f")
        is_stored = engine.sessions.durability.is_enabled
        self._single_step = _SingleStepResponse(self._response([1, self._num_outputs]))
        self._sequence_step = _SequenceStepResponse(self._response([1, self._num_outputs]), is_stored)

    def build(self, request: InferenceRequest) -> pb.ModelStreamInferResponse:
        """Returns the response to a request."""
        if not request.rows.is_row:
            return self._of_rows(request)
        y = self._values.pack(*request.y)
        return self._sequence_step.fill(request, y) if request.key else self._single_step.fill(request, y)

    def _of_rows(self, request: InferenceRequest) -> pb.ModelStreamInferResponse:
        whole = self._response([1, request.rows.num_steps, self._num_outputs])
        response = whole.infer_response
        response.id = request.request_id
        response.raw_output_contents.append(np.asarray(request.y, "<f4").tobytes())
        if request.key:
            _set_sequence(response.parameters["sequence_id"], request.parameters.sequence)
            response.parameters["step_index"].int64_param = request.step_index
            if request.engine.sessions.durability.is_enabled:
                response.parameters[_NUM_DURABLE].int64_param = _num_durable(request)
        return whole

    def _response(self, shape: list[int]) -> pb.ModelStreamInferResponse:
        whole = pb.ModelStreamInferResponse()
        response = whole.infer_response
        response.model_name, response.model_version = self._name, self._version
        response.outputs.add(name=Y, datatype=FP32, shape=shape)
        return whole


class _SingleStepResponse:
    """The message for every single step; its parts are looked up once."""

    def __init__(self, whole: pb.ModelStreamInferResponse) -> None:
        self._whole = whole
        self._response = whole.infer_response
        self._contents = self._response.raw_output_contents
        self._contents.append(b"")
        self._request_id = ""

    def fill(self, request: InferenceRequest, y: bytes) -> pb.ModelStreamInferResponse:
        """Returns the message, with a request's id and its prediction `y`."""
        if request.request_id != self._request_id:
            self._response.id = self._request_id = request.request_id
        self._contents[0] = y
        return self._whole


class _SequenceStepResponse:
    """The message for every single step of a sequence."""

    def __init__(self, whole: pb.ModelStreamInferResponse, is_stored: bool) -> None:
        self._message = _SingleStepResponse(whole)
        # The same entries, made in the same order, in every message: equal responses have equal bytes.
        parameters = whole.infer_response.parameters
        self._sequence_id, self._step_index = parameters["sequence_id"], parameters["step_index"]
        self._num_durable = parameters[_NUM_DURABLE] if is_stored else None
        self._sequence: int | str = 0  # of the response before

    def fill(self, request: InferenceRequest, y: bytes) -> pb.ModelStreamInferResponse:
        """Returns the message, with a request's id, place in its sequence and prediction `y`."""
        sequence = request.parameters.sequence
        if sequence != self._sequence:
            self._sequence = sequence
            _set_sequence(self._sequence_id, sequence)
        self._step_index.int64_param = request.step_index
        if self._num_durable is not None:
            self._num_durable.int64_param = _num_durable(request)
        return self._message.fill(request, y)


def error_response(
    error: StreamcellError,
    *,
    model_name: str,
    model_version: str,
    request_id: str,
    sequence: int | str | None,
) -> pb.ModelStreamInferResponse:
    """Returns a stream's response to a request that failed; `sequence` is the id in the request, if any."""
    response = pb.ModelInferResponse(model_name=model_name, model_version=model_version, id=request_id)
    parameters = response.parameters
    parameters["error_code"].int64_param = int(error.code)
    parameters["error_reason"].string_param = error.reason.value
    for name, value in error.metadata.items():
        parameters[name].string_param = value
    if error.retry_delay_seconds:
        parameters["retry_delay_seconds"].double_param = error.retry_delay_seconds
    if sequence is not None:
        _set_sequence(parameters["sequence_id"], sequence)
    return pb.ModelStreamInferResponse(error_message=error.message, infer_response=response)


def _num_durable(request: InferenceRequest) -> int:
    """Returns how many steps of a request's session are in the store, on the version that it is on now."""
    return 0 if request.session is None else request.session.current.num_durable_steps


def _set_sequence(parameter: pb.InferParameter, sequence: int | str) -> None:
    """Sets a parameter to a sequence's id."""
    if isinstance(sequence, str):
        parameter.string_param = sequence
    elif sequence < 1 << 63:
        parameter.int64_param = sequence
    else:
        parameter.uint64_param = sequence
