"""Serves 64 streams on the grpcio front from a loop of slow turns, and prints how many turns were needed.

Needs a process of its own: grpcio makes the sockets that wake a loop once in a process, for its first user.
"""

import asyncio
import functools
import sys
import time

from tests.integration.conftest import settings
from tests.integration.echo_service import GrpcioEchoServer
from tests.integration.raw import RawClient, message

NUM_STREAMS = 64
NUM_MESSAGES = 20
TURN_SECONDS = 0.002  # as long as with long inputs; other threads can do all their work meanwhile


class SlowTurns:
    """Makes every turn of the loop long, and counts the turns."""

    def __init__(self) -> None:
        self.count = 0
        self._is_over = False

    def begin(self) -> None:
        """Takes one long turn after another until `end`."""
        if not self._is_over:
            self.count += 1
            time.sleep(TURN_SECONDS)
            asyncio.get_running_loop().call_soon(self.begin)

    def end(self) -> None:
        """Ends the long turns."""
        self._is_over = True


async def converse(client: RawClient, stream: int) -> None:
    """Sends a stream's messages, each after the answer to the message before, and ends the stream."""
    for _ in range(NUM_MESSAGES):
        num_bytes = len(client.answers[stream].data)
        client.send(stream, message("say it"))
        await client.until(functools.partial(_has_more, client, stream, num_bytes))
    client.send(stream, b"", end=True)
    assert (await client.answer(stream)).texts == ["say it"] * NUM_MESSAGES


def _has_more(client: RawClient, stream: int, num_bytes: int) -> bool:
    return len(client.answers[stream].data) > num_bytes


async def turns_needed() -> int:
    """Returns the number of turns until all streams have ended."""
    server, turns = GrpcioEchoServer(), SlowTurns()
    client = await RawClient.connect(await server.start(settings(front="grpcio")))
    streams = [client.open("/t/Talk") for _ in range(NUM_STREAMS)]
    turns.begin()
    await asyncio.gather(*(converse(client, stream) for stream in streams))
    turns.end()
    await client.close()
    await server.stop()
    return turns.count


if __name__ == "__main__":
    sys.stdout.write(str(asyncio.run(turns_needed())))
