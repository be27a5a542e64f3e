"""Time and an event loop that move only by hand."""

from collections import deque
from typing import Any


class ManualClock:
    """Monotonic nanoseconds that move only when a test moves them."""

    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        """Returns the clock's time."""
        return self.now_ns


class ManualLoop:
    """An event loop whose turns a test takes by hand; no time passes in it."""

    def __init__(self) -> None:
        self.due: deque[Any] = deque()
        self.num_delays = 0

    def call_soon(self, function: Any) -> None:
        """Queues a function for a later turn."""
        self.due.append(function)

    def call_later(self, delay: float, function: Any) -> None:
        """Queues a function for a later turn, and counts it as delayed."""
        self.num_delays += 1
        self.due.append(function)

    def turn(self) -> None:
        """Runs the first function that is due."""
        self.due.popleft()()

    def run(self, most: int = 10_000) -> int:
        """Runs turns until no function is due; returns how many it took."""
        for turn in range(most):
            if not self.due:
                return turn
            self.turn()
        raise AssertionError(f"still busy after {most} turns")
