"""The check whether the client of a complete request is still connected."""

import asyncio

from service.fronts.envoy.asgi import DisconnectCheck, future_of, uncancelled
from tests.fakes import turn


class Rig:
    """A check of a client whose next event the test decides."""

    def __init__(self):
        self.pending, self.num_disconnects = [], 0
        self.check = DisconnectCheck(self._receive, self._on_disconnect)

    def _receive(self):
        self.pending.append(asyncio.get_running_loop().create_future())
        return self.pending[-1]

    def _on_disconnect(self):
        self.num_disconnects += 1

    async def answer(self, event):
        """Answers the running check."""
        self.pending[-1].set_result({"type": event})
        await turn()


class TestDisconnectCheck:
    """Checks, one at a time."""

    async def test_only_one_check_runs_at_a_time(self):
        """Another check begins when the check before is answered."""
        rig = Rig()
        rig.check.run()
        rig.check.run()
        assert len(rig.pending) == 1
        await rig.answer("http.request")
        rig.check.run()
        assert len(rig.pending) == 2

    async def test_a_client_that_is_gone_is_reported(self):
        """A client that is still connected is not."""
        rig = Rig()
        rig.check.run()
        await rig.answer("http.request")
        assert rig.num_disconnects == 0
        rig.check.run()
        await rig.answer("http.disconnect")
        assert rig.num_disconnects == 1


async def test_the_result_of_receive_or_send_is_a_future():
    """Most results of pyvoy are futures; a result that pyvoy has at once is not, and becomes one."""

    async def at_once():
        return "event"

    future = asyncio.get_running_loop().create_future()
    assert future_of(future) is future
    assert await future_of(at_once()) == "event"


async def test_a_cancelled_task_leaves_the_future_that_it_waits_for():
    """The other side can still complete the future: a result that nobody waits for is no error."""

    async def wait():
        return await uncancelled(future)

    future = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(wait())
    await turn()
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert waiting.cancelled()
    future.set_result("event")
    assert await uncancelled(future) == "event"
