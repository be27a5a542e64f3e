"""An event loop whose time jumps to the next timer, and processes in it that can be stopped.

Callbacks keep the order of asyncio's own loop: what differs between seeds are the delays that the network,
the store and the clients ask for. Does not know what runs in it.
"""

import asyncio
import contextvars
import heapq
from collections import deque

MAX_TURNS = 400_000  # of one seed: far more than any needs


class StuckError(AssertionError):
    """Nothing is left to run while somebody waits, or there is no end to it."""


class Process:
    """What runs together, and stops together; each of its callbacks has it in its context."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.context = contextvars.Context()
        self.context.run(CURRENT.set, self)
        self.is_frozen = False
        self.held: deque[asyncio.Handle] = deque()  # callbacks that came due while it was frozen
        self.tasks: list[asyncio.Task] = []


CURRENT: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)
OUTSIDE = contextvars.Context()  # of what belongs to no process: network, store, faults


class VirtualLoop(asyncio.BaseEventLoop):
    """A loop in virtual seconds, which takes no input from outside.

    Args:
        max_seconds: the virtual time by which everything has to be over.
    """

    def __init__(self, max_seconds: float) -> None:
        super().__init__()
        self.end = max_seconds
        self.num_turns = 0
        self._now = 0.0
        self._num_frozen = 0
        self.set_task_factory(_make_task)

    def time(self):
        """Returns the virtual time in seconds."""
        return self._now

    def time_ns(self):
        """Returns the virtual time in nanoseconds; never 0, which means never in places."""
        return 1_000_000_000 + round(self._now * 1e9)

    def outside(self, delay, function, *arguments):
        """Calls a function later, outside every process."""
        self.call_later(delay, function, *arguments, context=OUTSIDE)

    def freeze(self, process):
        """Holds a process' callbacks back from now on."""
        if not process.is_frozen:
            process.is_frozen = True
            self._num_frozen += 1

    def thaw(self, process):
        """Goes on with a process where it stopped."""
        if process.is_frozen:
            process.is_frozen = False
            self._num_frozen -= 1
            self._ready.extend(process.held)
            process.held.clear()

    def _run_once(self):
        timers, ready = self._scheduled, self._ready
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)
        if not ready:
            if not timers:
                raise StuckError(f"nothing is left to run at {self._now:.3f} s, and somebody waits")
            self._now = max(self._now, timers[0]._when)
        while timers and timers[0]._when <= self._now:
            ready.append(heapq.heappop(timers))
        self.num_turns += 1
        if self._now > self.end or self.num_turns > MAX_TURNS:
            raise StuckError(f"no end after {self._now:.3f} s and {self.num_turns} turns")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            if self._num_frozen and self._is_held(handle):
                continue
            handle._run()

    def _is_held(self, handle):
        process = handle._context.get(CURRENT)
        if process is None or not process.is_frozen:
            return False
        process.held.append(handle)
        return True

    def _process_events(self, event_list):
        """Has no events to process."""

    def _write_to_self(self):
        """Has nobody to wake."""


def _make_task(loop, coroutine, context=None):
    task = asyncio.Task(coroutine, loop=loop, context=context)
    process = CURRENT.get() if context is None else context.get(CURRENT)
    if process is not None:
        process.tasks.append(task)
    return task
