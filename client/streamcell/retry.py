"""When to try again: exponential backoff with full jitter.

Time and chance come from sources that a test can hold. Knows nothing of calls and sessions.
"""

import asyncio
import dataclasses
import random
import time
from collections.abc import Awaitable, Callable

from streamcell.errors import Overloaded, StreamcellError, Unavailable
from streamcell.values import RetryPolicy


@dataclasses.dataclass(frozen=True, slots=True)
class Sources:
    """Where time and chance come from: a monotonic clock in seconds, a sleep, a draw from [low, high]."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.uniform


def is_passing(error: StreamcellError) -> bool:
    """Tells whether the same request may well succeed a little later."""
    return isinstance(error, Unavailable | Overloaded)


class Backoff:
    """Paces the attempts of one operation."""

    def __init__(self, policy: RetryPolicy, sources: Sources) -> None:
        self._policy = policy
        self._sources = sources
        self._num_failures = 0
        self._ceiling_seconds = 0.0
        self._began = 0.0

    def succeeded(self) -> None:
        """Forgets earlier failures: attempts and time count anew."""
        self._num_failures = 0

    async def pause(self, error: StreamcellError) -> None:
        """Waits before the next attempt.

        Raises:
            StreamcellError: `error` itself, if it will not pass or the policy allows no further attempt.
        """
        self._count_failure()
        if not is_passing(error) or self._num_failures >= self._policy.max_attempts:
            raise error
        # The server's own wish comes on top of the jitter, so that clients it sent away come back apart.
        delay = error.retry_delay_seconds + self._sources.uniform(0.0, self._ceiling_seconds)
        if self._sources.now() + delay - self._began > self._policy.max_total_seconds:
            raise error
        await self._sources.sleep(delay)

    def _count_failure(self) -> None:
        policy = self._policy
        if self._num_failures == 0:
            self._began = self._sources.now()
            ceiling = policy.initial_delay_seconds
        else:
            ceiling = self._ceiling_seconds * policy.multiplier
        self._ceiling_seconds = min(policy.max_delay_seconds, ceiling)
        self._num_failures += 1
