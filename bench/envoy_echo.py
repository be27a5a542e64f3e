"""The floor of the envoy front: an ASGI application within Envoy that answers with prepared bytes.

`python -m bench.envoy_echo` serves on a free port, and names it in a line of JSON on standard error. Envoy
runs as the real server's does: under the same supervisor, with the same configuration and scheduling.
The echo has no deadlines, cancellation, limits or care for slow readers: what the real front costs above this
floor is its own work.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from bench import replies
from service.config import Address, Config
from service.errors import ConfigError
from service.processes import tuning
from service.processes.control import Channel
from service.processes.supervisor import Supervisor

_APPLICATION = "bench.envoy_echo:application"
_FREE = Address("127.0.0.1", 0)
_PREFIX_BYTES = 5  # before each message: a flag, and its length
_HEADERS = [(b"content-type", b"application/grpc")]
_BEGINNING = {"type": "http.response.start", "status": 200, "headers": _HEADERS, "trailers": True}
_TRAILERS = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}
_NO_METHOD = {
    "type": "http.response.start",
    "status": 200,
    "headers": [*_HEADERS, (b"grpc-status", b"12")],  # UNIMPLEMENTED
}
_Event = dict[str, Any]
_Receive = Callable[[], Awaitable[_Event]]
_Send = Callable[[_Event], Awaitable[None]]


def _body(message: bytes, *, more_body: bool = False) -> _Event:
    framed = b"\0" + len(message).to_bytes(4, "big") + message
    return {"type": "http.response.body", "body": framed, "more_body": more_body}


_STREAM = f"/{replies.SERVICE}/{replies.STREAM}"
_UNARY = {f"/{replies.SERVICE}/{name}": _body(response) for name, response in replies.UNARY.items()}
_CONFIGURED, _STEP = (_body(each, more_body=True) for each in (replies.CONFIGURED, replies.STREAM_STEP))
_LAST = {"type": "http.response.body", "body": b"", "more_body": False}


async def application(scope: _Event, receive: _Receive, send: _Send) -> None:
    """Serves a request; or, as the application's lifespan, starts and ends with Envoy."""
    if scope["type"] == "lifespan":
        await _live(receive, send)
    elif scope["path"] == _STREAM:
        await _stream(receive, send)
    else:
        await _answer(_UNARY.get(scope["path"]), receive, send)


# pyvoy sends when `send` is called, so its result need not be awaited. The real front relies on that too.
async def _stream(receive: _Receive, send: _Send) -> None:
    send(_BEGINNING)
    response, rest, has_more = _CONFIGURED, b"", True
    while has_more:
        event = await receive()
        if event["type"] != "http.request":
            return
        has_more = event["more_body"]
        num_messages, rest = split(rest + event["body"])
        for _ in range(num_messages):
            send(response)
            response = _STEP
    send(_LAST)
    send(_TRAILERS)


async def _answer(response: _Event | None, receive: _Receive, send: _Send) -> None:
    has_more = True
    while has_more:
        event = await receive()
        if event["type"] != "http.request":
            return
        has_more = event["more_body"]
    if response is None:
        send(_NO_METHOD)
        send(_LAST)
        return
    send(_BEGINNING)
    send(response)
    send(_TRAILERS)


def split(data: bytes) -> tuple[int, bytes]:
    """Returns the number of complete messages in some bytes, and the bytes after them."""
    num_messages, at, size = 0, 0, len(data)
    while size - at >= _PREFIX_BYTES:
        end = at + _PREFIX_BYTES + int.from_bytes(data[at + 1 : at + _PREFIX_BYTES], "big")
        if end > size:
            break
        num_messages, at = num_messages + 1, end
    return num_messages, data[at:]


async def _live(receive: _Receive, send: _Send) -> None:
    tuning.keep_freed_memory()
    await receive()  # "lifespan.startup"
    channel = await Channel.inherited(os.environ)
    channel.send(event="started", failed="", listen=list(_FREE))  # Envoy itself is asked where it listens
    await send({"type": "lifespan.startup.complete"})
    leaving = asyncio.create_task(_leave_with_supervisor(channel))
    await receive()  # "lifespan.shutdown"
    leaving.cancel()
    await send({"type": "lifespan.shutdown.complete"})


async def _leave_with_supervisor(channel: Channel) -> None:
    while await channel.receive() is not None:  # no message matters, only their end
        pass
    os.kill(os.getpid(), signal.SIGTERM)


async def serve(settings: Config) -> None:
    """Serves until SIGTERM.

    Raises:
        ConfigError: the envoy front does not run here.
    """
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    supervisor = Supervisor(settings, _APPLICATION)
    await supervisor.start()
    try:
        sys.stderr.write(json.dumps({"event": "serving", "listen": str(supervisor.listen)}) + "\n")
        sys.stderr.flush()
        await stop.wait()
    finally:
        await supervisor.stop()


def main() -> int:
    """Runs the command and returns its exit status."""
    settings = Config(listen=_FREE, metrics_listen=_FREE, front="envoy")
    if settings.cpu_scheduling == "batch":
        tuning.schedule_in_batches()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except ConfigError as error:
        sys.stderr.write(f"bench.envoy_echo: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
