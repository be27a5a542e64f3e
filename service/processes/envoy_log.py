"""What a process with Envoy inside writes: passed on line by line, and why Envoy did not start.

Envoy writes its whole configuration when it cannot start. That line is never passed on; its cause is kept for
the error. Does not know what the server inside writes, which is passed on as it is.
"""

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Callable

# Envoy's own lines in the form of the server's log.
FORMAT = '{"event": "envoy", "message": "%j", "level": "%l", "time": "%Y-%m-%dT%T%z"}'
_FAILURE = re.compile(r"error `(.*)` initializing config", re.DOTALL)
_READ_BYTES = 64 << 10
_MAX_CAUSE = 300  # characters


def _write(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody may read the log any more
        sys.stderr.write(line)
        sys.stderr.flush()


class EnvoyLog:
    """Passes on a process's lines, Envoy's own ones only when it is known whether Envoy has started.

    Args:
        lines: what the process writes.
        write: takes a line with its end.
    """

    def __init__(self, lines: asyncio.StreamReader, write: Callable[[str], None] = _write) -> None:
        self._lines = lines
        self._write = write
        self._held: list[str] | None = []  # Envoy's lines before it has started
        self._cause = ""
        self._reading = asyncio.create_task(self._read())

    def release(self) -> None:
        """Passes on Envoy's lines from now on, and those held so far: Envoy has started."""
        held, self._held = self._held or [], None
        for line in held:
            self._write(line)

    async def why_failed(self) -> str:
        """Returns why Envoy did not start, once its process has ended; "" if Envoy gave no reason.

        Without a reason Envoy's lines are passed on.
        """
        await asyncio.wait((self._reading,))
        if not self._cause:
            self.release()
        return " ".join(self._cause.split())[:_MAX_CAUSE]

    async def close(self) -> None:
        """Passes on the rest, once the process has ended."""
        await asyncio.wait((self._reading,))

    async def _read(self) -> None:
        rest = b""
        while found := await self._lines.read(_READ_BYTES):
            *lines, rest = (rest + found).split(b"\n")
            for line in lines:
                self._pass_on(line.decode(errors="replace"))
        if rest:
            self._pass_on(rest.decode(errors="replace"))

    def _pass_on(self, line: str) -> None:
        message = _message_of(line)
        if message is not None and (failure := _FAILURE.search(message)):
            self._cause = failure[1]
        elif self._cause and line.strip() == self._cause.strip():
            pass  # Envoy repeats the cause as plain text
        elif message is not None and self._held is not None:
            self._held.append(f"{line}\n")
        else:
            self._write(f"{line}\n")


def _message_of(line: str) -> str | None:
    """Returns the message of a line of Envoy's own; None of any other line."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    is_envoy = isinstance(found, dict) and found.get("event") == "envoy"
    return str(found.get("message", "")) if is_envoy else None
