"""The bytes of large requests, over all calls: of those that have arrived in part, and of those not answered.

Small requests are bounded by their number. Does not know calls, nor who has to wait.
"""

import contextlib
from collections import deque
from collections.abc import Iterator

LARGE_BYTES = 16 << 10
"""A message of fewer bytes is small."""


class RequestBytes:
    """The sum, and the bound on it. Whoever holds bytes adds and subtracts them.

    Args:
        max_bytes: the bound.
    """

    __slots__ = ("max_bytes", "num_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether the sum is at the bound or above."""
        return self.num_bytes >= self.max_bytes

    @contextlib.contextmanager
    def held(self, num_bytes: int) -> Iterator[None]:
        """Counts a request's bytes within the block."""
        self.num_bytes += num_bytes
        try:
            yield
        finally:
            self.num_bytes -= num_bytes


class LargeMessages:
    """The large messages of one stream that are not answered; answers count in the order of the messages."""

    __slots__ = ("_messages", "_total", "num_bytes")

    def __init__(self, total: RequestBytes) -> None:
        self._total = total
        self._messages: deque[tuple[int, int]] = deque()
        self.num_bytes = 0

    def add(self, number: int, num_bytes: int) -> None:
        """Counts the stream's `number`th message, which is large."""
        self._messages.append((number, num_bytes))
        self._change(num_bytes)

    def release(self, num_answers: int) -> None:
        """Forgets the messages that have an answer, as so many answers were sent."""
        while self._messages and self._messages[0][0] <= num_answers:
            self._change(-self._messages.popleft()[1])

    def release_all(self) -> None:
        """Forgets every message, as the stream has ended."""
        self._messages.clear()
        self._change(-self.num_bytes)

    def _change(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self._total.num_bytes += num_bytes
