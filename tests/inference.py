"""A client of the Open Inference Protocol: its requests, and its responses on a stream and as arrays."""

from typing import Any

import numpy as np
import numpy.typing as npt
from streamcell.inference import open_inference_pb2 as pb

from service.rpc.stream import Stream
from tests.fakes import next_message

SERVICE = "/inference.GRPCInferenceService"


def infer(x: Any, model: str = "recurrence", time: Any = None, is_raw: bool = True, **parameters: Any) -> Any:
    """Returns a ModelInferRequest; `request_id` and `version` among the parameters are its own fields."""
    request = pb.ModelInferRequest(
        model_name=model,
        model_version=parameters.pop("version", ""),
        id=parameters.pop("request_id", ""),
    )
    add(request, "x", "FP32", np.asarray(x, "<f4"), is_raw)
    if time is not None:
        add(request, "time", "INT64", np.asarray(time, "<i8"), is_raw)
    set_parameters(request, **parameters)
    return request


def set_parameters(request: pb.ModelInferRequest, **parameters: Any) -> None:
    """Sets parameters, each by its Python type."""
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[
            type(value)
        ]
        setattr(request.parameters[name], kind, value)


def add(
    request: pb.ModelInferRequest, name: str, datatype: str, values: npt.NDArray[Any], is_raw: bool = True
) -> None:
    """Adds an input."""
    tensor = request.inputs.add(name=name, datatype=datatype, shape=values.shape)
    if is_raw:
        request.raw_input_contents.append(values.tobytes())
    elif datatype == "FP32":
        tensor.contents.fp32_contents.extend(values.reshape(-1).tolist())
    else:
        tensor.contents.int64_contents.extend(values.reshape(-1).tolist())


def y_of(response: pb.ModelInferResponse) -> npt.NDArray[np.float32]:
    """Returns the predictions, shaped as the response says."""
    (output,) = response.outputs
    assert (output.name, output.datatype) == ("y", "FP32")
    return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(list(output.shape))


async def next_response(stream: Stream) -> pb.ModelStreamInferResponse:
    """Returns a stream's next response."""
    raw = await next_message(stream)
    assert raw is not None, f"the stream ended: {stream.status}"
    return pb.ModelStreamInferResponse.FromString(raw)


async def talk(stream: Stream, *requests: pb.ModelInferRequest) -> list[pb.ModelStreamInferResponse]:
    """Sends requests and returns the responses, one each."""
    for request in requests:
        stream.receive(request.SerializeToString())
    return [await next_response(stream) for _ in requests]
