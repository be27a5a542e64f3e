"""A new worker for a worker that ended: pauses, failed starts, and faults of the system."""

import asyncio

import pytest

from service.background import BackgroundTask
from service.errors import ConfigError
from service.processes.replacement import Replacement

NO_PROCESS = BlockingIOError(11, "Resource temporarily unavailable")
CANNOT_LISTEN = ConfigError("--listen: cannot listen")


class FakeWorker:
    """A worker that ends when the test says so."""

    name = "the worker"

    def __init__(self):
        self.ended = asyncio.get_running_loop().create_future()
        self.num_stops = 0

    async def wait(self):
        """Waits for the end."""
        return await asyncio.shield(self.ended)

    async def stop(self):
        """Counts the call."""
        self.num_stops += 1


class Rig:
    """A worker with number 0, its replacement, and a clock that only moves while somebody sleeps.

    Each start takes the next of `outcomes`: None, or the error that the start raises.
    """

    def __init__(self, *outcomes):
        self.workers = {0: FakeWorker()}
        self.outcomes = list(outcomes)
        self.seconds, self.pauses, self.num_restarts = 0.0, [], 0
        self.serving = asyncio.Event()
        self.replacement = Replacement(
            0,
            self.workers,
            self._start,
            count_restart=self._count_restart,
            clock=lambda: self.seconds,
            sleep=self._sleep,
        )

    async def _start(self, number):
        error = self.outcomes.pop(0)
        if error is NO_PROCESS:
            raise error
        self.workers[number] = FakeWorker()
        if error is not None:
            self.workers[number].ended.set_result(2)
            raise error
        self.serving.set()

    def _count_restart(self):
        self.num_restarts += 1

    async def _sleep(self, seconds):
        self.pauses.append(seconds)
        self.seconds += seconds

    async def end_and_replace(self, after_seconds=0.0):
        """Ends the worker after some seconds of life, and replaces it."""
        replacing = asyncio.create_task(self.replacement.replace())
        await asyncio.sleep(0)
        self.seconds += after_seconds
        self.workers[0].ended.set_result(-9)
        await replacing


def events(caplog):
    """Returns the names of the events in the log."""
    return [record.getMessage() for record in caplog.records]


class TestReplace:
    """Replacing a worker that ended."""

    async def test_a_worker_that_ended_is_stopped_counted_and_replaced(self, caplog):
        """The log says that it ended, why, and that another serves."""
        caplog.set_level("INFO")
        rig = Rig(None)
        before = rig.workers[0]
        await rig.end_and_replace()
        assert rig.workers[0] is not before
        assert (before.num_stops, rig.num_restarts) == (1, 1)
        assert events(caplog) == ["worker_ended", "worker_restarted"]
        assert caplog.records[0].fields["why"] == "the worker ended by itself, with status -9"

    async def test_pauses_grow_while_workers_end_early(self):
        """Each pause is twice the one before, up to ten seconds."""
        rig = Rig(*[None] * 9)
        for _ in range(9):
            await rig.end_and_replace()
        assert rig.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10])

    async def test_a_worker_that_lived_long_resets_the_pause(self):
        """A minute of life is steady."""
        rig = Rig(*[None] * 3)
        for seconds in (0, 0, 61):
            await rig.end_and_replace(seconds)
        assert rig.pauses == pytest.approx([0.1, 0.2, 0.1])


class TestFailedStart:
    """A new worker that cannot start."""

    async def test_a_worker_that_cannot_serve_is_replaced_in_turn(self, caplog):
        """Its end counts as another end, after a longer pause."""
        caplog.set_level("INFO")
        rig = Rig(CANNOT_LISTEN, None)
        await rig.end_and_replace()
        await rig.replacement.replace()
        assert events(caplog) == ["worker_ended", "worker_not_restarted", "worker_ended", "worker_restarted"]
        assert caplog.records[1].fields == {"worker": 0, "why": str(CANNOT_LISTEN), "retry_seconds": 0.2}
        assert (rig.num_restarts, rig.pauses) == (2, [0.1, 0.2])

    async def test_a_process_that_the_system_refuses_is_tried_again(self):
        """The background task counts the fault and goes on until a worker serves. The end counts once."""
        rig, counted = Rig(NO_PROCESS, NO_PROCESS, None), []
        task = BackgroundTask("worker_replacement", rig.replacement.replace, counted.append, pause_seconds=0)
        task.start()
        rig.workers[0].ended.set_result(-9)
        async with asyncio.timeout(60):
            await rig.serving.wait()
        await task.stop()
        assert counted == ["worker_replacement"] * 2
        assert rig.num_restarts == 1
        assert not rig.workers[0].ended.done()
