"""When iterations run: soon after they are asked for, or held back for a moment so that more steps can join.

A server library may hand over unary calls one at a time, a turn of the loop for each; iterations then run for
one step each however many callers wait, and every step pays their fixed price. Holding an iteration for some
ticks lets the calls come in. But a step that is alone would wait for nobody. So holding is tried now and
then, and kept up only while it pays: while at least four times as many steps run for it (docs/adr/0004).
Between the pieces of a long input, each an iteration of some milliseconds, what came meanwhile is let in.
Does not know what an iteration does.
"""

import os
from collections.abc import Callable
from typing import Protocol

TICK_SECONDS = 0.001  # the resolution of the event loop's timers
_PAYS_FACTOR = 4
_ENOUGH_STEPS = 64  # beyond, an iteration's fixed price is small whatever joins
_TRY_EVERY = 512  # iterations: one step in 512 waits a tick in vain, where holding does not pay
_MAX_MISSES = 3
# A message comes in by some turns of the loop and of a server library's threads, its answer leaves by some.
# Were each of them to wait for an iteration, a step beside long inputs would take four of them, not two.
_TURNS_BETWEEN = 4


class Pace:
    """One engine's habit of holding.

    Args:
        max_ticks: the most ticks that an iteration is held; 0 for never.
    """

    def __init__(self, max_ticks: int) -> None:
        self._max_ticks = max_ticks
        self._is_paying = False
        self._misses = 0
        self._num_since_try = 0
        self._first = self._last = self._ticks = 0

    def begin(self, num_steps: int) -> bool:
        """Tells whether to hold an iteration of `num_steps`; if so, `goes_on` is due at each tick."""
        self._num_since_try += 1
        is_tried = self._is_paying or self._num_since_try >= _TRY_EVERY
        if not is_tried or not self._max_ticks or num_steps * _PAYS_FACTOR > _ENOUGH_STEPS:
            return False
        self._num_since_try = 0
        self._first = self._last = num_steps
        self._ticks = 0
        return True

    def goes_on(self, num_steps: int) -> bool:
        """Tells, a tick later, whether to hold on, now that `num_steps` wait."""
        self._ticks += 1
        if self._last < num_steps < _ENOUGH_STEPS and self._ticks < self._max_ticks:
            self._last = num_steps
            return True
        if num_steps >= _PAYS_FACTOR * self._first:
            self._is_paying, self._misses = True, 0
        else:
            self._misses += 1
            self._is_paying = self._is_paying and self._misses < _MAX_MISSES
        return False


class Loop(Protocol):
    """What is needed of an event loop."""

    def call_soon(self, function: Callable[[], None], /) -> object:
        """Runs a function after what is already due."""

    def call_later(self, delay: float, function: Callable[[], None], /) -> object:
        """Runs a function in `delay` seconds."""


class Pacer:
    """Asks an event loop for one engine's iterations.

    Args:
        loop: runs them, all on one thread.
        max_hold_seconds: the longest that an iteration is held; 0 for never.
        num_steps: tells how many steps wait.
        iterate: runs an iteration.
    """

    def __init__(
        self,
        loop: Loop,
        max_hold_seconds: float,
        num_steps: Callable[[], int],
        iterate: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._pace = Pace(round(max_hold_seconds / TICK_SECONDS))
        self._num_steps = num_steps
        self._iterate = iterate
        self._is_due = False  # whether an iteration is on its way
        self._is_urgent = False  # whether it is for work that is not to be held
        self._turns_to_pass = 0  # before it

    def wake(self, may_be_held: bool = False) -> None:
        """Sees to it that an iteration comes soon."""
        if not may_be_held:
            self._is_urgent = True
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._begin)

    def go_on(self) -> None:
        """Sees to it that an iteration follows a long one, once what came meanwhile is let in."""
        self._turns_to_pass = _TURNS_BETWEEN
        self.wake()

    def end(self) -> None:
        """Lets go of what it asks for; no iteration is due, and none is to come."""
        self._num_steps, self._iterate = (lambda: 0), (lambda: None)

    def _begin(self) -> None:
        if self._turns_to_pass:
            self._turns_to_pass -= 1
            os.sched_yield()  # on one core the server library's threads have waited for the iteration to end
            self._loop.call_soon(self._begin)
        elif not self._is_urgent and self._pace.begin(self._num_steps()):
            self._loop.call_later(TICK_SECONDS, self._tick)
        else:
            self._run()

    def _tick(self) -> None:
        if self._pace.goes_on(self._num_steps()) and not self._is_urgent:
            self._loop.call_later(TICK_SECONDS, self._tick)
        else:
            self._run()

    def _run(self) -> None:
        self._is_due = self._is_urgent = False
        self._iterate()
