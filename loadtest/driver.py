"""Drives a generator over gRPC: a task for each message that may be outstanding.

Owns the clock and the tasks. Knows senders, not the API behind them.
"""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable

from loadtest.fleet import opened
from loadtest.generator import Generator
from loadtest.options import Options
from loadtest.plan import Window
from loadtest.senders import Sender, SenderBrokenError
from loadtest.tally import Tally

Begin = Callable[[], Awaitable[int]]
LAST_REPLIES_SECONDS = 10.0  # for messages that are unanswered when the window ends
_PAUSE_SECONDS = 0.1  # of a closed loop after a refusal, because a server asks for that


async def generate(options: Options, begin: Begin, stop: asyncio.Event) -> Tally:
    """Runs the load of one process and returns what it counted, also where `stop` ends it early.

    Args:
        begin: called when all is prepared; returns the start's monotonic ns.

    Raises:
        LoadtestError: the load could not be prepared.
    """
    async with opened(options, stop) as fleet:
        gc.collect()
        gc.freeze()  # what is prepared lives to the end: the collector need not look at it again
        window = Window.after(await begin(), options.warm_up, options.seconds)
        return await drive(options, fleet.senders, window, stop=stop)


async def drive(options: Options, senders: list[Sender], window: Window, stop: asyncio.Event) -> Tally:
    """Sends until the window ends, `options.max_steps` are sent, or `stop` is set."""
    generator = Generator(options, window)
    await sleep_until(window.start)
    cpu = asyncio.create_task(_measure_cpu(window, generator.tally))
    sending = [
        asyncio.create_task(_send_all(generator, number, sender))
        for number, sender in enumerate(senders)
        for _ in range(options.in_flight)
    ]
    stopping = asyncio.create_task(stop.wait())
    everything = asyncio.gather(*sending, return_exceptions=True)
    bound = (window.end - time.monotonic_ns()) * 1e-9 + LAST_REPLIES_SECONDS
    await asyncio.wait((everything, stopping), timeout=bound, return_when=asyncio.FIRST_COMPLETED)
    tally = generator.finish(time.monotonic_ns(), is_interrupted=stop.is_set())
    await _cancel([*sending, stopping, cpu])
    _raise_first(sending)
    return tally


async def _send_all(generator: Generator, number: int, sender: Sender) -> None:
    """Sends messages one at a time, each when it is due, until none is left or the sender is broken."""
    while (due := generator.next_due(number, time.monotonic_ns())) is not None:
        if generator.is_open_loop:
            await sleep_until(due)
        generator.sent(time.monotonic_ns() if generator.is_open_loop else due)
        try:
            reason = await sender.send()
        except SenderBrokenError as error:
            generator.failed(error.reason)
            return
        if not reason:
            generator.answered(due, time.monotonic_ns())
            continue
        generator.failed(reason)
        if not generator.is_open_loop:
            await asyncio.sleep(_PAUSE_SECONDS)


async def _measure_cpu(window: Window, tally: Tally) -> None:
    """Notes the CPU time that this process spends in the window, or in the part of it before a stop."""
    await sleep_until(window.begin)
    before = time.process_time()
    try:
        await sleep_until(window.end)
    finally:
        tally.cpu_seconds = [time.process_time() - before]


async def sleep_until(instant_ns: int) -> None:
    """Sleeps until an instant of the monotonic clock."""
    # A loop's timers may come somewhat early, uvloop's by half a millisecond.
    while (left_ns := instant_ns - time.monotonic_ns()) > 0:  # noqa: ASYNC110 (time is what it waits for)
        await asyncio.sleep(left_ns * 1e-9)


async def _cancel(tasks: "list[asyncio.Task[None] | asyncio.Task[bool]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _raise_first(tasks: "list[asyncio.Task[None]]") -> None:
    """Raises what a task ended with, if that is a fault of this program."""
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
