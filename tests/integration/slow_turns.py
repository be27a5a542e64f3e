"""Takes slow turns of a loop that serves 64 streams on the grpcio front, and says how many they needed.

A process of its own: grpcio makes what wakes a loop once in a process, with whatever uses it first.
"""

import asyncio
import functools
import sys
import time

from tests.integration.conftest import settings
from tests.integration.echo_service import InProcess
from tests.integration.raw import RawClient, message

NUM_STREAMS = 64
NUM_MESSAGES = 20
TURN_SECONDS = 0.002  # as when long inputs are under way: the other threads have all the time they need


class SlowTurns:
    """Makes every turn of the loop a long one, and counts them."""

    def __init__(self) -> None:
        self.count = 0
        self._is_over = False

    def begin(self) -> None:
        """Goes on until `end`."""
        if not self._is_over:
            self.count += 1
            time.sleep(TURN_SECONDS)
            asyncio.get_running_loop().call_soon(self.begin)

    def end(self) -> None:
        """Ends it."""
        self._is_over = True


async def converse(client: RawClient, stream: int) -> None:
    """Sends a stream's messages, each when the one before is answered, and ends it."""
    for _ in range(NUM_MESSAGES):
        num_bytes = len(client.answers[stream].data)
        client.send(stream, message("say it"))
        await client.until(functools.partial(_has_more, client, stream, num_bytes))
    client.send(stream, b"", end=True)
    assert (await client.answer(stream)).texts == ["say it"] * NUM_MESSAGES


def _has_more(client: RawClient, stream: int, num_bytes: int) -> bool:
    return len(client.answers[stream].data) > num_bytes


async def turns_needed() -> int:
    """Returns the turns in which all streams have had their conversations."""
    house, turns = InProcess(), SlowTurns()
    client = await RawClient.connect(await house.start(settings(front="grpcio")))
    streams = [client.open("/t/Talk") for _ in range(NUM_STREAMS)]
    turns.begin()
    await asyncio.gather(*(converse(client, stream) for stream in streams))
    turns.end()
    await client.close()
    await house.stop()
    return turns.count


if __name__ == "__main__":
    sys.stdout.write(str(asyncio.run(turns_needed())))
