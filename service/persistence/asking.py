"""Claims rows that another server may own: asks a living owner for the row, and waits for it for a while.

Does not know what the owner does, nor what becomes of the session.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

from service.store.base import Claim, Claimed, ClaimStatus

_ANSWER_SECONDS = 0.25  # for an owner to release a row; then a caller who may take it over does
_PATIENCE_SECONDS = 8.0  # for a caller who may not: a dead owner is known as dead after five at most
_FIRST_PAUSE_SECONDS = 0.004
_LONGEST_PAUSE_SECONDS = 0.064


class Asking:
    """Claims of rows, by key, and the callers who may take them over.

    Args:
        claim: makes one claim.
    """

    def __init__(self, claim: Callable[[Claim], Awaitable[Claimed]]) -> None:
        self._claim = claim
        self._taking_over: Counter[str] = Counter()  # callers by key

    @contextlib.contextmanager
    def taking_over(self, key: str) -> Iterator[None]:
        """Takes a row over within the block, if need be: also for a caller who waits for it already."""
        self._taking_over[key] += 1
        try:
            yield
        finally:
            self._taking_over[key] -= 1
            if not self._taking_over[key]:
                del self._taking_over[key]

    async def claim(self, key: str) -> Claimed:
        """Claims a row once its owner has released it, or is dead, or has not answered in time.

        Raises:
            StreamcellError: STORE_UNAVAILABLE.
        """
        now = asyncio.get_running_loop().time
        began, pause = now(), _FIRST_PAUSE_SECONDS
        while True:
            seconds = now() - began
            takes_over = seconds >= _ANSWER_SECONDS and self._taking_over[key] > 0
            wanted = Claim(key, may_create=False, may_find=True, may_take_over=takes_over, asks=True)
            claimed = await self._claim(wanted)
            if claimed.status is not ClaimStatus.OWNED_ELSEWHERE or seconds >= _PATIENCE_SECONDS:
                return claimed
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
