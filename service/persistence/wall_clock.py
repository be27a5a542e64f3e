"""Instants of the monotonic clock as Unix seconds, and back. Does not know what the instants are of."""

from collections.abc import Callable


class WallClock:
    """Two clocks that agree: the monotonic one of the engines, and the wall clock of the store's rows.

    Args:
        clock: monotonic nanoseconds.
        wall: Unix seconds, read once: a clock that is set later changes nothing.
    """

    def __init__(self, clock: Callable[[], int], wall: Callable[[], float]) -> None:
        self.now_ns = clock
        self.began_ns = clock()
        """The instant at which the server began, monotonic ns."""
        self._offset_seconds = wall() - self.began_ns * 1e-9

    def unix_seconds(self, instant_ns: int) -> float:
        """Returns what the wall clock shows at an instant."""
        return self._offset_seconds + instant_ns * 1e-9

    def instant_ns(self, unix_seconds: float) -> int:
        """Returns the instant at which the wall clock shows `unix_seconds`."""
        return round((unix_seconds - self._offset_seconds) * 1e9)
