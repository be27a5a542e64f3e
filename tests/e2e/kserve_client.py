"""A client with stubs made from kserve.proto alone; test_kserve_proto runs it.

The arguments are HOST:PORT and the values to stream, as JSON. The client picks the first model whose only
input is one value a step, streams the values as a sequence and prints {"models", "model", "outputs", "y"} as
JSON.
"""

import json
import struct
import sys

import grpc
import kserve_pb2 as pb
import kserve_pb2_grpc as stubs


def requests(model, values):
    """Yields a request for each value, with the data type that the metadata names."""
    (tensor,) = model.inputs
    for at, value in enumerate(values):
        request = pb.ModelInferRequest(model_name=model.name, id=str(at))
        request.parameters["sequence_id"].string_param = "a stranger's"
        request.parameters["sequence_start"].bool_param = at == 0
        request.parameters["sequence_end"].bool_param = at == len(values) - 1
        given = request.inputs.add(name=tensor.name, datatype=tensor.datatype)
        given.shape.extend([1 if size == -1 else size for size in tensor.shape])
        given.contents.fp32_contents.append(value)
        yield request


def main(target, values):
    """Streams the values to a server of which only the address is known."""
    with grpc.insecure_channel(target) as channel:
        server = stubs.GRPCInferenceServiceStub(channel)
        assert server.ServerReady(pb.ServerReadyRequest()).ready
        assert "sequence(string_id)" in server.ServerMetadata(pb.ServerMetadataRequest()).extensions
        models = [each.name for each in server.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models]
        described = [server.ModelMetadata(pb.ModelMetadataRequest(name=name)) for name in models]
        model = next(each for each in described if [list(one.shape) for one in each.inputs] == [[-1, 1]])
        y = []
        for at, response in enumerate(server.ModelStreamInfer(requests(model, values))):
            assert not response.error_message, response.error_message
            found = response.infer_response
            assert found.id == str(at)
            (output,), (raw,) = found.outputs, found.raw_output_contents
            assert output.name == model.outputs[0].name
            y.append(struct.unpack(f"<{output.shape[-1]}f", raw))
        json.dump(
            {"models": models, "model": model.name, "outputs": model.properties["y"], "y": y}, sys.stdout
        )


main(sys.argv[1], json.loads(sys.argv[2]))
