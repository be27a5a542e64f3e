"""When iterations run: soon after work asks for one, or a moment later so that more steps can join.

A server library may pass on unary calls one at a time, each in a turn of the loop. Iterations then run for
one step each, however many callers wait, and every step pays the fixed price of an iteration. To hold an
iteration, that is to delay it by some ticks, lets the calls come in; but the step of a lone caller would wait
in vain. So an iteration is held now and then as a try, and the next ones only while holding pays: while at
least four times as many steps run for it (docs/adr/0004). Between the pieces of a long input, each an
iteration of some milliseconds, messages that came meanwhile are let in.
Does not know what an iteration does.
"""

import os
from collections.abc import Callable
from typing import Protocol

TICK_SECONDS = 0.001  # the resolution of the event loop's timers
_PAYS_FACTOR = 4
_ENOUGH_STEPS = 64  # beyond, an iteration's fixed price is small whatever joins
_TRY_EVERY = 512  # iterations: where holding does not pay, one step in 512 waits a tick in vain
_MAX_MISSES = 3
# A message comes in by some turns of the loop and of a server library's threads, and its answer leaves by
# some. If each of those turns waited for an iteration, a step beside long inputs would take four iterations,
# not two.
_TURNS_BETWEEN = 4


class HoldPolicy:
    """Whether one engine's iterations are held, and for how long.

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
        """Returns whether to hold an iteration of `num_steps`; if so, call `extend` at each tick."""
        self._num_since_try += 1
        is_tried = self._is_paying or self._num_since_try >= _TRY_EVERY
        if not is_tried or not self._max_ticks or num_steps * _PAYS_FACTOR > _ENOUGH_STEPS:
            return False
        self._num_since_try = 0
        self._first = self._last = num_steps
        self._ticks = 0
        return True

    def extend(self, num_steps: int) -> bool:
        """Returns whether to hold the iteration for another tick, now that `num_steps` are queued.

        When the hold ends, records whether it paid.
        """
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
    """The part of an event loop that the pacer uses."""

    def call_soon(self, function: Callable[[], None], /) -> object:
        """Runs a function after those that are due already."""

    def call_later(self, delay: float, function: Callable[[], None], /) -> object:
        """Runs a function in `delay` seconds."""


class Pacer:
    """Asks an event loop for one engine's iterations.

    Args:
        loop: runs the iterations, all on one thread.
        max_hold_seconds: the longest that an iteration is held; 0 for never.
        num_steps: returns how many steps are queued.
        iterate: runs an iteration.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        max_hold_seconds: float,
        num_steps: Callable[[], int],
        iterate: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._policy = HoldPolicy(round(max_hold_seconds / TICK_SECONDS))
        self._num_steps = num_steps
        self._iterate = iterate
        self._is_due = False  # whether an iteration has been asked for
        self._is_urgent = False  # whether the iteration must not be held
        self._turns_to_pass = 0  # turns of the loop before the iteration

    def wake(self, may_be_held: bool = False) -> None:
        """Asks for an iteration, if none is due yet."""
        if not may_be_held:
            self._is_urgent = True
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._begin)

    def wake_after_long_inputs(self) -> None:
        """Asks for an iteration some turns of the loop from now, so that waiting messages come in first."""
        self._turns_to_pass = _TURNS_BETWEEN
        self.wake()

    def stop(self) -> None:
        """Drops the references to the engine. Called when no iteration is due and none is to come."""
        self._num_steps, self._iterate = (lambda: 0), (lambda: None)

    def _begin(self) -> None:
        if self._turns_to_pass:
            self._turns_to_pass -= 1
            os.sched_yield()  # on one core the server library's threads have waited for the iteration to end
            self._loop.call_soon(self._begin)
        elif not self._is_urgent and self._policy.begin(self._num_steps()):
            self._loop.call_later(TICK_SECONDS, self._tick)
        else:
            self._run()

    def _tick(self) -> None:
        if self._policy.extend(self._num_steps()) and not self._is_urgent:
            self._loop.call_later(TICK_SECONDS, self._tick)
        else:
            self._run()

    def _run(self) -> None:
        self._is_due = self._is_urgent = False
        self._iterate()
