"""The load itself: every sender sends until the window ends, and what comes back is counted.

Owns the loops, closed and open. Knows senders and a clock, not the API behind them.
"""

import asyncio
import contextlib
import dataclasses
import gc
import itertools
import time
from collections.abc import Awaitable, Callable

from loadtest.api import OverError, Sender
from loadtest.fleet import opened
from loadtest.options import Options
from loadtest.plan import Schedule, Window
from loadtest.tally import Tally

Begin = Callable[[], Awaitable[int]]
_LAST_REPLIES_SECONDS = 10.0  # for what is under way at the end
_PAUSE_SECONDS = 0.1  # after a refused message: a server asks for that; an open loop goes by its plan


async def generate(options: Options, begin: Begin, stop: asyncio.Event) -> Tally:
    """Runs the load of one process and returns what it counted; a load that `stop` ends early counts too.

    Args:
        begin: called when all is prepared; returns the start's monotonic ns.

    Raises:
        LoadtestError: it could not be prepared.
    """
    async with opened(options, stop) as fleet:
        gc.collect()
        gc.freeze()  # what is prepared lives to the end: the collector need not look at it again
        window = Window.after(await begin(), options.warm_up, options.seconds)
        return await Load(options, fleet.senders, window).run(stop)


class Load:
    """One run of a process's senders."""

    def __init__(self, options: Options, senders: list[Sender], window: Window) -> None:
        self._options = options
        self._senders = senders
        self._window = window
        self._tally = Tally()
        self._per_message = options.steps_per_message
        self._messages_left = options.max_steps // self._per_message if options.max_steps else None

    async def run(self, stop: asyncio.Event) -> Tally:
        """Sends until the window ends, the bound on steps is reached, or `stop` is set."""
        await sleep_until(self._window.start)
        cpu = asyncio.create_task(self._watch_cpu())
        streams = [asyncio.create_task(self._drive(*each)) for each in enumerate(self._senders)]
        stopping = asyncio.create_task(stop.wait())
        everything = asyncio.gather(*streams, return_exceptions=True)
        bound = (self._window.end - time.monotonic_ns()) * 1e-9 + _LAST_REPLIES_SECONDS
        await asyncio.wait((everything, stopping), timeout=bound, return_when=asyncio.FIRST_COMPLETED)
        finished = time.monotonic_ns()
        if not stop.is_set():
            self._tally.errors.update({"NO_REPLY": sum(not stream.done() for stream in streams)})
        await _cancel(*streams, stopping, cpu)
        self._tally.errors += type(self._tally.errors)()  # drops reasons that were counted zero times
        self._tally.seconds = max(0, min(finished, self._window.end) - self._window.begin) * 1e-9
        _raise_first(streams)
        return self._tally

    async def _drive(self, number: int, sender: Sender) -> None:
        """Sends one sender's messages, as many at once as it may have outstanding."""
        turns = _Turns(self._schedule(number))
        await asyncio.gather(*(self._take_turns(turns, sender) for _ in range(self._options.in_flight)))
        if turns.schedule is not None and self._messages_left is None:
            unsent = turns.schedule.planned_before(self._window.end) - turns.num_sent
            self._tally.unsent_steps += max(0, unsent) * self._per_message

    async def _take_turns(self, turns: "_Turns", sender: Sender) -> None:
        """Sends messages, each when the last is answered and, in an open loop, it is due."""
        while self._may_send():
            k = next(turns.numbers)
            due = await _turn(turns.schedule, k)
            if due >= self._window.end:
                break
            turns.num_sent += 1
            self._count_sent(due if turns.schedule is None else time.monotonic_ns())
            try:
                reason = await sender.send(k)
            except OverError as error:
                self._tally.errors[error.reason] += 1
                return
            is_open = turns.schedule is not None
            self._count(reason, due, time.monotonic_ns(), is_open)
            if reason and not is_open:
                await asyncio.sleep(_PAUSE_SECONDS)

    def _schedule(self, number: int) -> Schedule | None:
        if not self._options.rate:
            return None
        messages_per_second = self._options.rate / self._per_message
        return Schedule.of_stream(number, len(self._senders), messages_per_second, self._window.start)

    def _may_send(self) -> bool:
        now = time.monotonic_ns()
        if now >= self._window.end:
            return False
        if self._messages_left is None or now < self._window.begin:
            return True
        self._messages_left -= 1
        return self._messages_left >= 0

    def _count_sent(self, now_ns: int) -> None:
        if self._window.begin <= now_ns < self._window.end:
            self._tally.num_sent_steps += self._per_message

    def _count(self, reason: str, due_ns: int, now_ns: int, is_open: bool) -> None:
        """Counts an answer by its own instant; an open loop's latency by the message's.

        Else a stall at the window's end would leave no trace but a lower rate.
        """
        if reason:
            self._tally.errors[reason] += 1
            return
        is_within = self._window.begin <= now_ns < self._window.end
        if is_within:
            self._tally.num_messages += 1
            self._tally.num_steps += self._per_message
        if self._window.begin <= due_ns < self._window.end if is_open else is_within:
            self._tally.latencies.record(now_ns - due_ns)

    async def _watch_cpu(self) -> None:
        await sleep_until(self._window.begin)
        before = time.process_time()
        try:
            await sleep_until(self._window.end)
        finally:
            self._tally.cpu_seconds = [time.process_time() - before]


@dataclasses.dataclass
class _Turns:
    """The messages of one sender, numbered in the order in which they are due; no schedule: closed loop."""

    schedule: Schedule | None
    num_sent: int = 0
    numbers: "itertools.count[int]" = dataclasses.field(default_factory=itertools.count)


async def sleep_until(instant_ns: int) -> None:
    """Sleeps until an instant of the monotonic clock."""
    # A loop's timers may come somewhat early, uvloop's by half a millisecond.
    while (left_ns := instant_ns - time.monotonic_ns()) > 0:  # noqa: ASYNC110 (time is what it waits for)
        await asyncio.sleep(left_ns * 1e-9)


async def _turn(schedule: Schedule | None, k: int) -> int:
    """Waits for the k-th message's turn; returns the instant from which its latency counts."""
    now = time.monotonic_ns()
    if schedule is None:
        return now
    due = schedule.due(k)
    if due > now:
        await sleep_until(due)
    return due


async def _cancel(*tasks: "asyncio.Task[object] | asyncio.Task[None] | asyncio.Task[bool]") -> None:
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


def _raise_first(tasks: "list[asyncio.Task[None]]") -> None:
    """Raises what a task ended with, if that is a fault of this program."""
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
