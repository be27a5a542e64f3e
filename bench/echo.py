"""The floor of gRPC's Python server: it answers every message with bytes made before, and does nothing else.

Its messages are as large as the real server's for one step, both ways. So that the same generator can drive
both it has a model's name and takes any session; it keeps none. `python -m bench.echo` serves on a free port
and says which, in a line of JSON on standard error.
"""

import asyncio
import json
import signal
import sys
from typing import Any

import grpc
import uvloop
from grpc import aio
from streamcell.v1 import streamcell_pb2 as pb

from bench.cases import NUM_INPUTS

_SERVICE = pb.DESCRIPTOR.services_by_name["StreamcellService"].full_name
_STEP = pb.StepResponse(step_index=1000, y=[0.5])
_MODEL = pb.Model(
    name="reference", version="1", inputs=[pb.Variable(name=f"x{i}") for i in range(NUM_INPUTS)]
)
_UNARY: dict[str, Any] = {
    "ListModels": pb.ListModelsResponse(models=[_MODEL]),
    "OpenSession": pb.OpenSessionResponse(),
    "CloseSession": pb.CloseSessionResponse(),
    "Step": _STEP,
}
_CONFIGURED = pb.StreamResponse(config=pb.StreamConfigured()).SerializeToString()
_STREAM_STEP = pb.StreamResponse(step=_STEP).SerializeToString()


def _unary(response: bytes) -> Any:
    async def answer(_: bytes, __: Any) -> bytes:
        return response

    return grpc.unary_unary_rpc_method_handler(answer)


async def _stream(_: Any, context: Any) -> None:
    response = _CONFIGURED  # to the first message, which binds the sessions
    while isinstance(await context.read(), bytes):
        await context.write(response)
        response = _STREAM_STEP


async def serve() -> None:
    """Serves until SIGTERM."""
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    handlers = {name: _unary(message.SerializeToString()) for name, message in _UNARY.items()}
    handlers["Stream"] = grpc.stream_stream_rpc_method_handler(_stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    sys.stderr.write(json.dumps({"event": "serving", "listen": f"127.0.0.1:{port}"}) + "\n")
    sys.stderr.flush()
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
