"""When messages are sent and which of them count: the instants of a run, from one clock.

Pure arithmetic on monotonic nanoseconds; knows neither the loop nor the messages.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """The instants of a run, monotonic ns: load from `start`, counted from `begin` until `end`."""

    start: int
    begin: int
    end: int

    @classmethod
    def after(cls, start_ns: int, warm_up_seconds: float, seconds: float) -> "Window":
        """Returns the window of a run that starts at an instant."""
        begin = start_ns + round(warm_up_seconds * 1e9)
        return cls(start_ns, begin, begin + round(seconds * 1e9))


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """An open loop's plan for one stream: its k-th message is due at `first` + k · `interval` (ns).

    The plan does not wait for replies: a message that cannot be sent when it is due keeps its due time, and
    its latency counts from there.
    """

    first: float
    interval: float

    @classmethod
    def of_stream(
        cls, number: int, num_streams: int, messages_per_second: float, start_ns: int
    ) -> "Schedule":
        """Returns the plan of stream `number`; the streams take turns at an even pace."""
        gap = 1e9 / messages_per_second
        return cls(start_ns + number * gap, num_streams * gap)

    def due(self, k: int) -> int:
        """Returns when message k is due."""
        return round(self.first + k * self.interval)

    def planned_before(self, instant_ns: int) -> int:
        """Returns how many messages are due before an instant."""
        return max(0, -int((self.first - instant_ns) // self.interval))
