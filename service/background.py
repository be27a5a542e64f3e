"""Tasks that last as long as the server: a fault in one turn is reported, and the task goes on.

Owns the loop around a task's turns. Does not know what a turn does.
"""

import asyncio
from collections.abc import Awaitable, Callable

from service.telemetry import faults

_PAUSE_SECONDS = 1.0  # after a fault: a turn that always fails must not keep the event loop busy


class BackgroundTask:
    """A task that takes one turn after another until it is stopped.

    A turn that raises is logged with its traceback and counted; the next turn follows after a pause.

    Args:
        name: names the task in metrics, as in "write_behind".
        turn: one turn. A turn awaits something, so that other tasks run in between.
        count_fault: called with the name for each turn that raised.
        pause_seconds: how long the task waits after a fault.
    """

    def __init__(
        self,
        name: str,
        turn: Callable[[], Awaitable[None]],
        count_fault: Callable[[str], None],
        *,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        self._name = name
        self._turn = turn
        self._count_fault = count_fault
        self._pause_seconds = pause_seconds
        self._is_stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the task; needs a running event loop."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Cancels the current turn, and returns when the task has ended. May be called twice."""
        self._is_stopping = True
        if self._task is not None:
            # A turn may swallow the cancellation, as asyncio.wait_for does before Python 3.12. The turn then
            # ends by itself, and no other turn follows.
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        while not self._is_stopping:
            try:
                await self._turn()
            except Exception as exception:
                faults.report(exception)
                self._count_fault(self._name)
                await asyncio.sleep(self._pause_seconds)
