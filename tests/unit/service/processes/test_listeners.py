"""The wait until a worker's clients can connect, and until the last answers have left, by a fake clock."""

import itertools
import types

import pytest

from service.config import Address
from service.errors import ConfigError
from service.processes.listeners import EnvoyListener, ServerListener

CONFIGURED, BOUND = Address("127.0.0.1", 0), Address("127.0.0.1", 5000)


class Clock:
    """A clock that only moves while somebody sleeps."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        """Returns the time."""
        return self.seconds

    async def sleep(self, seconds):
        """Moves the time on at once."""
        self.seconds += seconds


class ScriptedAdmin:
    """An Envoy with given answers."""

    def __init__(self, addresses=(), sending=()):
        self._addresses, self._sending = iter(addresses), iter(sending)
        self.num_questions = 0

    def listen_address(self):
        """Returns the next address."""
        self.num_questions += 1
        return next(self._addresses)

    def is_sending(self):
        """Returns the next answer."""
        self.num_questions += 1
        return next(self._sending)


class Rig:
    """A listener over a scripted Envoy, its process and its clock."""

    def __init__(self, returncode=None, **answers):
        self.admin, self.clock = ScriptedAdmin(**answers), Clock()
        self.process = types.SimpleNamespace(returncode=returncode)
        self.listener = EnvoyListener(self.admin, clock=self.clock, sleep=self.clock.sleep)

    async def wait(self):
        """Waits until Envoy listens."""
        return await self.listener.wait_until_listening(self.process, CONFIGURED)


class TestWaitUntilListening:
    """The wait until Envoy listens."""

    async def test_envoy_is_asked_until_it_listens(self):
        """The address is Envoy's own, with the port in use."""
        rig = Rig(addresses=[None, None, BOUND])
        assert await rig.wait() == BOUND
        assert rig.admin.num_questions == 3

    async def test_an_address_keeps_all_its_hosts(self):
        """Envoy tells the first of them; the port is one for all."""
        rig = Rig(addresses=[BOUND])
        several = Address("127.0.0.1,::1", 0)
        assert await rig.listener.wait_until_listening(rig.process, several) == Address(several.host, 5000)

    async def test_an_envoy_that_ended_is_an_error_at_once(self):
        """The message has the status."""
        rig = Rig(returncode=-9, addresses=itertools.repeat(None))
        with pytest.raises(ConfigError, match=r"--listen: Envoy cannot listen \(status -9\)"):
            await rig.wait()
        assert rig.admin.num_questions == 1

    async def test_the_wait_is_bounded(self):
        """An Envoy that runs and never listens is an error that says what to do."""
        rig = Rig(addresses=itertools.repeat(None))
        with pytest.raises(ConfigError, match=r"after 60 seconds: look for .* or use --front grpcio"):
            await rig.wait()
        assert 60 <= rig.clock.seconds < 61


class TestFlush:
    """The wait until the last answers have left."""

    async def test_the_wait_ends_with_the_last_answer(self):
        """Envoy is asked until nothing is on its way."""
        rig = Rig(sending=[True, True, False])
        await rig.listener.flush()
        assert rig.admin.num_questions == 3

    async def test_the_wait_is_bounded(self):
        """A client that reads slowly holds a drain up for a few seconds only."""
        rig = Rig(sending=itertools.repeat(True))
        await rig.listener.flush()
        assert 5 <= rig.clock.seconds < 6


async def test_a_server_that_listens_itself_reports_its_address():
    """There is nothing to wait for."""
    listener = ServerListener()
    assert await listener.wait_until_listening(types.SimpleNamespace(), BOUND) == BOUND
    await listener.flush()
