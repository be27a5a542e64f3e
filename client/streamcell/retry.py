"""When to try again: exponential backoff with full jitter, and which errors are worth another attempt.

Time and chance come from sources that a test can replace. Knows nothing of calls and sessions.
"""

import asyncio
import dataclasses
import random
import time
from collections.abc import Awaitable, Callable

from streamcell.errors import (
    Fenced,
    Overloaded,
    SessionExists,
    SessionNotFound,
    StepGap,
    StreamcellError,
    Unavailable,
)
from streamcell.values import RetryPolicy


@dataclasses.dataclass(frozen=True, slots=True)
class Sources:
    """Where time and chance come from; a test replaces them to run without waiting.

    `now` is a monotonic clock in seconds, `sleep` waits, `uniform` draws a number from [low, high].
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.uniform


def is_passing(error: StreamcellError) -> bool:
    """Returns whether the same request may succeed a little later."""
    return isinstance(error, Unavailable | Overloaded)


def is_curable(error: StreamcellError) -> bool:
    """Returns whether a call on a session may succeed once the session is recovered.

    The session may have moved to another server, or this server may not know it, or may lack steps of it.
    """
    return is_passing(error) or isinstance(error, Fenced | SessionNotFound | StepGap)


def is_reopenable(error: StreamcellError) -> bool:
    """Returns whether a session that could not be opened again may be opened a little later.

    Two clients that open the same session at once can get in each other's way.
    """
    return is_passing(error) or isinstance(error, Fenced | SessionExists)


class Backoff:
    """Paces the attempts of one operation.

    Example:
        while True:
            try:
                return await operation()
            except StreamcellError as error:
                await backoff.pause(error)
    """

    def __init__(self, policy: RetryPolicy, sources: Sources, *, max_attempts: int | None = None) -> None:
        self._policy = policy
        self._sources = sources
        self._max_attempts = min(policy.max_attempts, max_attempts or policy.max_attempts)
        self._num_failures = 0
        self._ceiling_seconds = 0.0
        self._began = 0.0

    def succeeded(self) -> None:
        """Forgets earlier failures: attempts and time count from zero again."""
        self._num_failures = 0

    async def pause(
        self, error: StreamcellError, is_worth_it: Callable[[StreamcellError], bool] = is_passing
    ) -> None:
        """Waits before the next attempt.

        Raises:
            StreamcellError: `error` itself, if it is not worth another attempt or the policy allows none.
        """
        self._count_failure()
        if not is_worth_it(error) or self._num_failures >= self._max_attempts:
            raise error
        # The jitter comes on top of the server's delay, so that the clients it sent away return one by one.
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
