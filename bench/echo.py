"""The floor of gRPC's Python server: answers every message with prepared bytes, and does nothing else.

`python -m bench.echo` serves on a free port, and names it in a line of JSON on standard error. By default its
threads are scheduled as grpcio leaves them; with `--batch` as the real server's are.
"""

import asyncio
import json
import signal
import sys
from typing import Any

import grpc
import uvloop
from grpc import aio

from bench import replies
from service.processes import tuning


def _unary(response: bytes) -> Any:
    async def answer(_: bytes, __: Any) -> bytes:
        return response

    return grpc.unary_unary_rpc_method_handler(answer)


async def _stream(_: Any, context: Any) -> None:
    response = replies.CONFIGURED
    while isinstance(await context.read(), bytes):
        await context.write(response)
        response = replies.STREAM_STEP


async def serve() -> None:
    """Serves until SIGTERM."""
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    handlers = {name: _unary(response) for name, response in replies.UNARY.items()}
    handlers[replies.STREAM] = grpc.stream_stream_rpc_method_handler(_stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(replies.SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    sys.stderr.write(json.dumps({"event": "serving", "listen": f"127.0.0.1:{port}"}) + "\n")
    sys.stderr.flush()
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    if "--batch" in sys.argv[1:]:
        tuning.schedule_in_batches()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
