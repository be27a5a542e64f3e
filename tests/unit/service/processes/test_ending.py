"""The end of a server: as a lame duck for a while, then by a drain, and at once after a second signal."""

import asyncio
import signal

import pytest

from service.config import Config
from service.processes.ending import end


class FakeServer:
    """A server that records what it is told; its drain takes until `may_end`."""

    def __init__(self):
        self.events = []
        self.may_end = asyncio.Event()

    def become_lame_duck(self):
        """Records the call."""
        self.events.append("lame duck")

    async def drain(self):
        """Drains, and is clean."""
        self.events.append("drain")
        await self.may_end.wait()
        return True


class Rig:
    """A server whose end has begun, the delay that a test holds, and the second signal."""

    def __init__(self, **settings):
        self.server = FakeServer()
        self.delay, self.asked_seconds = asyncio.Event(), []
        self.second = asyncio.get_running_loop().create_future()
        self.ending = asyncio.create_task(
            end(self.server, Config(**settings), signal.SIGTERM, self.second, sleep=self._sleep)
        )

    async def _sleep(self, seconds):
        self.asked_seconds.append(seconds)
        await self.delay.wait()


async def turns():
    """Gives every task the time to get as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


def events(caplog):
    """Returns the events in the log."""
    return [record.getMessage() for record in caplog.records]


async def test_without_a_delay_the_drain_begins_at_once(caplog):
    """The server is no lame duck, and nobody sleeps."""
    caplog.set_level("INFO")
    rig = Rig()
    rig.server.may_end.set()
    assert await rig.ending is True
    assert (rig.server.events, rig.asked_seconds) == (["drain"], [])
    assert events(caplog) == ["draining"]


async def test_a_delay_comes_between_the_report_and_the_drain(caplog):
    """For as long as the delay lasts, the server is a lame duck and nothing is refused."""
    caplog.set_level("INFO")
    rig = Rig(drain_delay_seconds=5.0)
    await turns()
    assert (rig.server.events, rig.asked_seconds) == (["lame duck"], [5.0])
    assert events(caplog) == ["lame_duck"]
    assert caplog.records[0].fields["delay_seconds"] == 5.0
    rig.delay.set()
    rig.server.may_end.set()
    assert await rig.ending is True
    assert rig.server.events == ["lame duck", "drain"]
    assert events(caplog) == ["lame_duck", "draining"]


@pytest.mark.parametrize("is_in_drain", [False, True])
async def test_a_second_signal_ends_at_once(is_in_drain):
    """In the delay the drain never begins; in the drain nobody waits for its end."""
    rig = Rig(drain_delay_seconds=5.0)
    if is_in_drain:
        rig.delay.set()
    await turns()
    rig.second.set_result(signal.SIGTERM)
    assert await rig.ending is None
    assert rig.server.events == ["lame duck", "drain"][: 1 + is_in_drain]
