"""The raw load by the Open Inference Protocol; `python -m bench.infer` takes the options of `bench.raw`.

Each sender steps one sequence on a ModelStreamInfer of its own, as Triton's clients do: x is raw, and the
only parameter is the sequence's id. Does not know when messages are due.
"""

import secrets
import sys

import grpc
from google.protobuf.message import Message
from streamcell.inference import open_inference_pb2 as pb
from streamcell.inference import open_inference_pb2_grpc as pb_grpc

from bench import raw
from bench.channel import failure, metadata_of, open_channel
from bench.wire import StreamMethod, Streams
from loadtest.errors import OptionError
from loadtest.options import Options
from loadtest.run import Result

_PATH = f"/{pb.DESCRIPTOR.services_by_name['GRPCInferenceService'].full_name}/ModelStreamInfer"
_GOOD = 0x12  # the first byte of an answer without an error: of its field infer_response
_SECONDS = 30.0  # timeout of what precedes the load


def stream_method(num_inputs: int) -> StreamMethod:
    """Returns the method that steps sequences of a model; their sessions are those of `session_ids`."""

    def messages(session_id: str) -> tuple[Message, Message]:
        _, model, _, sequence = session_id.split(":")
        name, version = model.split("/")
        request = pb.ModelInferRequest(model_name=name, model_version=version)
        request.parameters["sequence_id"].int64_param = int(sequence)
        request.inputs.add(name="x", datatype="FP32", shape=[1, num_inputs])
        request.raw_input_contents.append(bytes(4 * num_inputs))
        return request, request

    return StreamMethod(
        path=_PATH,
        messages=messages,
        good_bytes=frozenset((_GOOD,)),
        response=pb.ModelStreamInferResponse,
    )


def session_ids(model: str, count: int) -> list[str]:
    """Returns the ids of the sessions that stand for `count` new sequences of a model, "NAME/VERSION"."""
    first = 1 + secrets.randbelow(1 << 40)
    return [f"inference:{model}:int:{number}" for number in range(first, first + count)]


def model_of(options: Options) -> tuple[str, int]:
    """Returns the model to load, "NAME/VERSION", and the number of its inputs.

    Raises:
        OptionError: no model is named, and the server does not have exactly one; or it has not the named one.
        LoadtestError: the server does not answer.
    """
    access = options.access()
    with open_channel(options.target, access) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        try:
            metadata = metadata_of(access)
            index = stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=_SECONDS, metadata=metadata)
            served = [f"{each.name}/{each.version}" for each in index.models]
            found = [each for each in served if options.model in ("", each, each.split("/")[0])]
            if len(found) != 1:
                raise OptionError(f"--model: name one of {', '.join(served)}")
            name, version = found[0].split("/")
            asked = pb.ModelMetadataRequest(name=name, version=version)
            model = stub.ModelMetadata(asked, timeout=_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            raise failure(options.target, access, error) from None
    return found[0], model.inputs[0].shape[1]


def run(options: Options) -> Result:
    """Runs a load of single steps on streams.

    Raises:
        OptionError: the mode is another one, or no model is named and the server has several.
        LoadtestError: the load could not begin, or the server ended it.
    """
    if options.mode != "stream":
        raise OptionError(f"--mode: {options.mode} is not for bench.infer, which streams single steps")
    model, num_inputs = model_of(options)
    method = stream_method(num_inputs)
    ids = session_ids(model, options.streams)
    return raw.drive(options, ids, lambda connections: Streams(connections, method))


if __name__ == "__main__":
    sys.exit(raw.main(run))
