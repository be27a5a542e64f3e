"""The instants of a run: its window, and an open loop's schedule.

Arithmetic on monotonic nanoseconds. Knows neither senders nor messages.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """The instants of a run, monotonic ns: warm-up from `start`, measured from `begin` until before `end`."""

    start: int
    begin: int
    end: int

    @classmethod
    def after(cls, start_ns: int, warm_up_seconds: float, seconds: float) -> "Window":
        """Returns the window of a run that starts at `start_ns`."""
        begin = start_ns + round(warm_up_seconds * 1e9)
        return cls(start_ns, begin, begin + round(seconds * 1e9))


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """When the messages of one stream are due in an open loop: the k-th at `first` + k · `interval` (ns)."""

    first: float
    interval: float

    @classmethod
    def of_stream(
        cls, number: int, num_streams: int, messages_per_second: float, start_ns: int
    ) -> "Schedule":
        """Returns the schedule of stream `number`. The streams take turns at an even pace."""
        gap = 1e9 / messages_per_second
        return cls(start_ns + number * gap, num_streams * gap)

    def due(self, k: int) -> int:
        """Returns when message k is due."""
        return round(self.first + k * self.interval)

    def num_due_before(self, instant_ns: int) -> int:
        """Returns the number of messages that are due before an instant."""
        return max(0, -int((self.first - instant_ns) // self.interval))
