"""Tasks that last as long as the server: they go on after a fault, and stop when told."""

import asyncio

from service.background import BackgroundTask


class GatedTurns:
    """The turns of a task. Each turn waits until the test lets it through, and some fail."""

    def __init__(self, failures=()):
        self.ended = []
        self.began = asyncio.Queue()
        self._failures = failures
        self._gate = asyncio.Semaphore(0)

    async def take(self):
        """Takes one turn, once the test lets it through."""
        number = len(self.ended)
        self.began.put_nowait(number)
        await self._gate.acquire()
        self.ended.append(number)
        if number in self._failures:
            raise MemoryError("the sealed words of a fault")

    async def let_through(self, count):
        """Lets `count` turns through, and returns when the next turn waits."""
        await self.began.get()
        for _ in range(count):
            self._gate.release()
            await self.began.get()


async def test_turns_follow_each_other_until_the_task_is_stopped():
    """The current turn is cancelled, and no turn follows."""
    turns = GatedTurns()
    task = BackgroundTask("writer", turns.take, lambda name: None)
    task.start()
    await turns.let_through(3)
    await task.stop()
    assert turns.ended == [0, 1, 2]
    await task.stop()


async def test_a_fault_is_logged_and_counted_and_the_task_goes_on(caplog):
    """The log has the traceback, the counter the task's name, and the next turn runs."""
    turns, counted = GatedTurns(failures={1}), []
    task = BackgroundTask("writer", turns.take, counted.append, pause_seconds=0)
    task.start()
    await turns.let_through(3)
    await task.stop()
    assert turns.ended == [0, 1, 2]
    assert counted == ["writer"]
    (record,) = [each for each in caplog.records if each.getMessage() == "fault"]
    assert "the sealed words of a fault" in str(record.exc_info[1])


async def test_a_turn_that_swallows_its_cancellation_is_the_last():
    """A turn may swallow its cancellation, as asyncio.wait_for does before Python 3.12. No turn follows."""
    num_turns = 0

    async def turn():
        nonlocal num_turns
        num_turns += 1
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return

    task = BackgroundTask("writer", turn, lambda name: None)
    task.start()
    await asyncio.sleep(0)
    await task.stop()
    assert num_turns == 1


async def test_a_task_that_never_began_can_be_stopped():
    """A server that could not start may stop a task that never started."""
    await BackgroundTask("writer", GatedTurns().take, lambda name: None).stop()
