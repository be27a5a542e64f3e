"""The channel between a supervisor and a worker process: one JSON object a line, over an inherited socket.

A channel that ends means that the other process has ended, for any reason. Does not know what messages mean.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Mapping
from typing import Any

VARIABLE = "STREAMCELL_CONTROL_FD"  # the number of the file descriptor that is the worker's end
_MAX_LINE_BYTES = 64 << 20  # a page of metrics is one line


class Channel:
    """One end of the channel."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def of(cls, end: socket.socket) -> "Channel":
        """Returns the channel over a connected socket, and owns the socket from then on."""
        return cls(*await asyncio.open_connection(sock=end, limit=_MAX_LINE_BYTES))

    @classmethod
    async def inherited(cls, environment: Mapping[str, str]) -> "Channel":
        """Returns the worker's end, from the worker's environment variables."""
        return await cls.of(socket.socket(fileno=int(environment[VARIABLE])))

    def send(self, **message: Any) -> None:
        """Sends a message; does nothing if the other end is gone."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any] | None:
        """Returns the next message; None if the other end is gone."""
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    async def close(self) -> None:
        """Closes this end, once every message has left."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
