"""One generator process of several: reads its share on standard input, and answers on standard output.

`loadtest.processes` is the other side. The load ends when standard input does.
"""

import asyncio
import contextlib
import json
import sys
from typing import Any

import uvloop

from loadtest.driver import generate
from loadtest.errors import LoadtestError
from loadtest.options import Options


async def run() -> None:
    """Runs a share of a load, from its options to its result."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    options = Options(**json.loads(await lines.readline()))
    stop = asyncio.Event()
    stopping: asyncio.Task[None] | None = None

    async def begin() -> int:
        nonlocal stopping
        send({"ready": True})
        line = await lines.readline()
        stopping = asyncio.create_task(_stop_at_end(lines, stop))
        if not line:
            raise LoadtestError("interrupted before the load began")
        start: int = json.loads(line)["start_ns"]
        return start

    try:
        tally = await generate(options, begin, stop)
        send({"tally": tally.to_json()})
    except LoadtestError as error:
        send({"error": str(error)})
    finally:
        if stopping is not None:
            stopping.cancel()


async def _stop_at_end(lines: asyncio.StreamReader, stop: asyncio.Event) -> None:
    await lines.read()
    stop.set()


def send(message: dict[str, Any]) -> None:
    """Sends a message to the process that started this one, if it is still there."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
