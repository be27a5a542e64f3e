"""The generator's load by the Open Inference Protocol; `python -m bench.infer` takes its options.

A sequence each, and its steps one at a time on a ModelStreamInfer of its own, as Triton's clients send them:
x raw, and nothing beside the sequence's id. Does not know when messages are due.
"""

import secrets
import sys

import grpc
from streamcell.inference import open_inference_pb2 as pb
from streamcell.inference import open_inference_pb2_grpc as pb_grpc

from bench import http2, raw
from bench.http2 import Frame
from bench.wire import Connection
from loadtest.errors import LoadtestError, OptionError
from loadtest.options import Options
from loadtest.run import Result

_PATH = f"/{pb.DESCRIPTOR.services_by_name['GRPCInferenceService'].full_name}/ModelStreamInfer"
_GOOD = 0x12  # what an answer that tells no error begins with: its infer_response
_SECONDS = 30.0  # for what is asked before the load


class Inferrers:
    """Streams of the Open Inference Protocol, a sequence each; sessions are named by `names`."""

    def __init__(self, connections: list[Connection], width: int) -> None:
        self._connections = connections
        self._width = width
        self._places: dict[int, tuple[Connection, int, bytes]] = {}

    def open(self, number: int, session_id: str) -> None:
        """Begins a stream, with a step."""
        _, model, _, sequence = session_id.split(":")
        name, version = model.split("/")
        request = pb.ModelInferRequest(model_name=name, model_version=version)
        request.parameters["sequence_id"].int64_param = int(sequence)
        request.inputs.add(name="x", datatype="FP32", shape=[1, self._width])
        request.raw_input_contents.append(bytes(4 * self._width))
        connection = self._connections[number % len(self._connections)]
        stream = connection.begin(_PATH, number)
        self._places[number] = connection, stream, http2.message(request.SerializeToString())
        self.send(number)

    def send(self, number: int) -> None:
        """Sends a step."""
        connection, stream, framed = self._places[number]
        connection.send(stream, framed)

    def answered(self, connection: Connection, frame: Frame) -> int | None:
        """Every message of the server's answers one, in a frame of its own.

        Raises:
            LoadtestError: a step failed, or the stream has ended.
        """
        kind, flags, stream, payload = frame
        if flags & http2.END_STREAM:
            raise LoadtestError("the server ended a stream")
        if kind == http2.HEADERS or not payload:
            return None
        if payload[5] != _GOOD:
            raise LoadtestError(f"a step failed: {pb.ModelStreamInferResponse.FromString(payload[5:])}")
        return connection.owners[stream]


def names(model: str, count: int) -> list[str]:
    """Returns the names of the sessions that stand for so many sequences of a model, "NAME/VERSION"."""
    first = 1 + secrets.randbelow(1 << 40)
    return [f"inference:{model}:int:{number}" for number in range(first, first + count)]


def model_of(options: Options) -> tuple[str, int]:
    """Returns the model to load, "NAME/VERSION", and how many inputs a step of it has.

    Raises:
        LoadtestError: the server does not answer, or has several.
    """
    with grpc.insecure_channel(options.target) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        try:
            index = stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=_SECONDS)
            served = [f"{each.name}/{each.version}" for each in index.models]
            found = [each for each in served if options.model in ("", each, each.split("/")[0])]
            if len(found) != 1:
                raise LoadtestError(f"--model: name one of {', '.join(served)}")
            name, version = found[0].split("/")
            asked = pb.ModelMetadataRequest(name=name, version=version)
            about = stub.ModelMetadata(asked, timeout=_SECONDS)
        except grpc.RpcError as error:
            raise LoadtestError(f"{options.target}: {error.details()}") from None
    return found[0], about.inputs[0].shape[1]


def run(options: Options) -> Result:
    """Runs a load.

    Raises:
        LoadtestError: it could not begin, or the server broke it off.
    """
    if options.mode != "stream":
        raise OptionError(f"--mode: {options.mode} is not for this: it streams single steps")
    model, width = model_of(options)
    return raw.run_as(
        options, names(model, options.streams), lambda connections: Inferrers(connections, width)
    )


if __name__ == "__main__":
    sys.exit(raw.main(run))
