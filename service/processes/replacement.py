"""A new worker in the place of a worker that ended, after a pause that grows while workers end early.

Does not know how a worker is started.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from service.errors import ConfigError
from service.telemetry import log

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0
_STEADY_SECONDS = 60.0  # the end of a worker that lived longer resets the pause


class Replaceable(Protocol):
    """A worker that may end."""

    @property
    def name(self) -> str:
        """The worker's name in messages."""

    async def wait(self) -> int:
        """Waits until the worker ends; returns its status."""

    async def stop(self) -> None:
        """Frees what the worker used."""


class Replacement:
    """Replaces one worker of several whenever it ends.

    Args:
        number: the worker's number.
        workers: the current worker of each number.
        start: starts a worker of a number, puts it among `workers` and waits until it serves.
        count_restart: called for each worker that ended.
    """

    def __init__(
        self,
        number: int,
        workers: Mapping[int, Replaceable],
        start: Callable[[int], Awaitable[None]],
        *,
        count_restart: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._number = number
        self._workers = workers
        self._start = start
        self._count_restart = count_restart
        self._clock = clock
        self._sleep = sleep
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._ended: Replaceable | None = None  # the last worker whose end was counted

    async def replace(self) -> None:
        """Waits until the worker ends, and starts another; a later call repeats a start that failed.

        Raises:
            OSError: the system cannot start a process.
        """
        worker = self._workers[self._number]
        if worker is not self._ended:
            await self._wait_for_end(worker)
        await self._sleep(self._pause_seconds)
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
        try:
            await self._start(self._number)
        except ConfigError as error:
            retry = self._pause_seconds
            log.warning("worker_not_restarted", worker=self._number, why=str(error), retry_seconds=retry)
        else:
            log.info("worker_restarted", worker=self._number)

    async def _wait_for_end(self, worker: Replaceable) -> None:
        started = self._clock()
        why = f"{worker.name} ended by itself, with status {await worker.wait()}"
        log.warning("worker_ended", worker=self._number, why=why)
        await worker.stop()
        self._count_restart()
        self._ended = worker
        if self._clock() - started > _STEADY_SECONDS:
            self._pause_seconds = _FIRST_PAUSE_SECONDS
