"""Several generator processes as one: started, begun together, stopped, added up.

They are started anew, never forked, and speak JSON, a line each way: their options, "ready", the start,
the result. Whichever way this process ends, their standard input ends with it, and they then close their
sessions.
"""

import asyncio
import dataclasses
import json
import sys
from typing import Any

from loadtest.driver import Begin
from loadtest.errors import LoadtestError
from loadtest.options import Options
from loadtest.tally import Tally, together

_LINE_LIMIT = 1 << 24  # of a result, in bytes
_LEAVE_SECONDS = 30.0


class Member:
    """One generator process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, options: Options) -> "Member":
        """Starts a process for its share of the load."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "loadtest.process",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LINE_LIMIT,
            start_new_session=True,  # an interrupt at the terminal comes through this process
        )  # fmt: skip
        member = cls(process)
        member.tell(dataclasses.asdict(options))
        return member

    def tell(self, message: dict[str, Any]) -> None:
        """Sends a message."""
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def hear(self) -> dict[str, Any]:
        """Returns its next message.

        Raises:
            LoadtestError: it says why it cannot go on, or ended without a word.
        """
        line = await self._process.stdout.readline() if self._process.stdout is not None else b""
        message: dict[str, Any] = json.loads(line) if line else {"error": "a generator process ended early"}
        if "error" in message:
            raise LoadtestError(message["error"])
        return message

    def stop(self) -> None:
        """Tells it to end early; its result comes all the same."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def leave(self) -> None:
        """Waits until it has ended, and ends it where it does not."""
        self.stop()
        try:
            await asyncio.wait_for(self._process.wait(), _LEAVE_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


async def generate(options: Options, begin: Begin, stop: asyncio.Event) -> Tally:
    """Runs the load in several processes and returns their sum.

    Raises:
        LoadtestError: one of them could not begin, or broke.
    """
    shares = [options.share(number) for number in range(options.processes)]
    members = [await Member.start(share) for share in shares]
    stopping = asyncio.create_task(_stop_all(members, stop))
    try:
        await asyncio.gather(*(member.hear() for member in members))
        start = await begin()
        for member in members:
            member.tell({"start_ns": start})
        results = await asyncio.gather(*(member.hear() for member in members))
    finally:
        stopping.cancel()
        await asyncio.gather(*(member.leave() for member in members))
    return together(Tally.from_json(result["tally"]) for result in results)


async def _stop_all(members: list[Member], stop: asyncio.Event) -> None:
    await stop.wait()
    for member in members:
        member.stop()
