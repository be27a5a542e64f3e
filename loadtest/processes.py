"""Several generator processes as one: started, begun together, stopped, their counts added up.

They are new processes, never forks. Both sides speak JSON, a line each: the options, "ready", the start, the
result. However this process ends, their standard input ends with it, and they then close their sessions.
"""

import asyncio
import dataclasses
import json
import sys
from typing import Any

from loadtest.driver import Begin
from loadtest.errors import LoadtestError
from loadtest.options import Options
from loadtest.tally import Tally, add_up

_LINE_LIMIT = 1 << 24  # of a result, in bytes
_EXIT_SECONDS = 30.0  # then a process is killed


class GeneratorProcess:
    """One generator process; `loadtest.process` is the other side."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, options: Options) -> "GeneratorProcess":
        """Starts a process with its share of the load."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "loadtest.process",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LINE_LIMIT,
            start_new_session=True,  # an interrupt at the terminal reaches it through this process only
        )  # fmt: skip
        started = cls(process)
        started.send(dataclasses.asdict(options))
        return started

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message."""
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any]:
        """Returns the next message of the process.

        Raises:
            LoadtestError: the process reports an error, or has ended without one.
        """
        line = await self._process.stdout.readline() if self._process.stdout is not None else b""
        message: dict[str, Any] = json.loads(line) if line else {"error": "a generator process ended early"}
        if "error" in message:
            raise LoadtestError(message["error"])
        return message

    def stop(self) -> None:
        """Ends the load of the process early; its result still comes."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def wait(self) -> None:
        """Stops the process and waits until it has ended; kills it after 30 s."""
        self.stop()
        try:
            await asyncio.wait_for(self._process.wait(), _EXIT_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


async def generate(options: Options, begin: Begin, stop: asyncio.Event) -> Tally:
    """Runs the load in several processes and returns the sum of their counts.

    Raises:
        LoadtestError: one of the processes could not begin, or failed.
    """
    shares = [options.share(number) for number in range(options.processes)]
    processes = [await GeneratorProcess.start(share) for share in shares]
    stopping = asyncio.create_task(_stop_all(processes, stop))
    try:
        await asyncio.gather(*(process.receive() for process in processes))
        start = await begin()
        for process in processes:
            process.send({"start_ns": start})
        results = await asyncio.gather(*(process.receive() for process in processes))
    finally:
        stopping.cancel()
        await asyncio.gather(*(process.wait() for process in processes))
    return add_up(Tally.from_json(result["tally"]) for result in results)


async def _stop_all(processes: list[GeneratorProcess], stop: asyncio.Event) -> None:
    await stop.wait()
    for process in processes:
        process.stop()
