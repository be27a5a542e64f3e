"""A whole load test, in this process or in several, and the server's cost during it. Owns their order."""

import asyncio
import contextlib
import dataclasses
import time

from loadtest import processes
from loadtest.driver import generate
from loadtest.errors import LoadtestError
from loadtest.options import Options
from loadtest.plan import Window
from loadtest.server_side import Observer, Reading, ServerCost, cost
from loadtest.tally import Tally

_LEAD_NS = 100_000_000  # from "all ready" to the start, so that every process learns of it in time


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run counted. `server` is None where the options name no source, or it could not be read."""

    options: Options
    tally: Tally
    server: ServerCost | None
    is_interrupted: bool


async def run(options: Options, stop: asyncio.Event) -> Result:
    """Runs a load test until its end, or until `stop` is set.

    Raises:
        LoadtestError: the load could not begin; nothing was measured.
    """
    watch = _Watch(options)
    await watch.check()
    if options.processes == 1:
        tally = await generate(options, watch.begin, stop)
    else:
        tally = await processes.generate(options, watch.begin, stop)
    server = await watch.finish(tally.num_steps)
    return Result(options, tally, server, is_interrupted=stop.is_set())


class _Watch:
    """Sets the start, and reads the server at both ends of the window."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._observer = Observer(options.metrics, options.server_pid)
        self._is_over = asyncio.Event()
        self._reading: asyncio.Task[tuple[Reading, Reading]] | None = None

    async def check(self) -> None:
        """Reads once, so that a wrong address is an error before the load."""
        if self._observer.has_source:
            await self._observer.read()

    async def begin(self) -> int:
        """Sets the start and returns it, in monotonic ns."""
        before = await self._observer.read() if self._observer.has_source else None
        start = time.monotonic_ns() + _LEAD_NS
        window = Window.after(start, self._options.warm_up, self._options.seconds)
        if before is not None:
            self._reading = asyncio.create_task(self._read(window, before))
        return start

    async def finish(self, num_steps: int) -> ServerCost | None:
        """Returns the server's cost in the window; None where there is no source, or the load never began."""
        self._is_over.set()
        if self._reading is None:
            return None
        try:
            before, after = await self._reading
        except LoadtestError:  # the server has gone: the load's own errors show it
            return None
        if self._options.mode == "forecast":  # the server counts and times steps only
            before, after = Reading(before.cpu_seconds), Reading(after.cpu_seconds)
        return cost(before, after, num_steps)

    async def _read(self, window: Window, before: Reading) -> tuple[Reading, Reading]:
        if window.begin > window.start:  # without a warm-up the reading before the start is exact
            await self._until(window.begin)
            before = await self._observer.read()
        await self._until(window.end)
        return before, await self._observer.read()

    async def _until(self, instant_ns: int) -> None:
        """Waits for an instant, or for the end of the load if it comes first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0, instant_ns - time.monotonic_ns()) * 1e-9):
                await self._is_over.wait()
