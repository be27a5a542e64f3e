"""Whether an iteration is held back for a moment, so that more steps can join it. Pure policy over counts.

A server library may hand over unary calls one at a time, a turn of the loop for each; iterations then run for
one step each however many callers wait, and every step pays their fixed price. Holding an iteration for some
ticks lets the calls come in. But a step that is alone would wait for nobody. So holding is tried now and
then, and kept up only while it pays: while at least four times as many steps run for it (docs/adr/0004).
"""

TICK_SECONDS = 0.001  # the resolution of the event loop's timers
_PAYS_FACTOR = 4
_ENOUGH_STEPS = 64  # beyond, an iteration's fixed price is small whatever joins
_TRY_EVERY = 512  # iterations: one step in 512 waits a tick in vain, where holding does not pay
_MAX_MISSES = 3


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
