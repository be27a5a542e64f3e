"""The load generator: when each sender's next message is due, in a closed or an open loop, and what counts.

Arithmetic on instants, in monotonic ns. Knows neither a clock nor a network: `loadtest.driver` runs it over
gRPC, `bench.raw` over bare HTTP/2. Both therefore count in the same way.
"""

from loadtest.options import Options
from loadtest.plan import Schedule, Window
from loadtest.tally import Tally


class Generator:
    """One run of a load by `options.streams` senders, which are numbered from 0.

    Closed loop, without a rate: a sender's next message is due when its last one is answered. Open loop: the
    messages are due by a schedule. A message that cannot be sent when it is due is sent late, and its latency
    counts from the due time. So the latencies of an open loop include the waits that a slow server causes
    before sending; those of a closed loop omit them ("coordinated omission").
    """

    def __init__(self, options: Options, window: Window) -> None:
        self.tally = Tally()
        self._window = window
        self._steps_per_message = options.steps_per_message
        self._messages_left = options.max_steps // self._steps_per_message if options.max_steps else None
        self._schedules = _schedules(options, window.start)
        self._num_scheduled = [0] * options.streams  # messages by sender, in an open loop
        self._num_sent = 0
        self._num_unanswered = 0

    @property
    def is_open_loop(self) -> bool:
        """Whether messages are due by a schedule, and not when the last one is answered."""
        return bool(self._schedules)

    @property
    def num_unanswered(self) -> int:
        """Messages that were sent and neither answered nor failed yet."""
        return self._num_unanswered

    def next_due(self, sender: int, now: int) -> int | None:
        """Returns when a sender's next message is due; None where it sends no more.

        Args:
            sender: the sender's number.
            now: in a closed loop also the due time.
        """
        due = now
        if self._schedules:
            due = self._schedules[sender].due(self._num_scheduled[sender])
            self._num_scheduled[sender] += 1
        if now >= self._window.end or due >= self._window.end:
            return None
        if self._messages_left is not None and now >= self._window.begin:
            if self._messages_left == 0:
                return None
            self._messages_left -= 1
        return due

    def sent(self, now: int) -> None:
        """Counts a message that is sent."""
        self._num_sent += 1
        self._num_unanswered += 1
        if self._window.begin <= now < self._window.end:
            self.tally.num_sent_steps += self._steps_per_message

    def answered(self, due: int, now: int) -> None:
        """Counts an answer.

        Steps count by the instant of the answer; in an open loop a latency counts by the due time. Otherwise
        a stall at the end of the window would show only in a lower rate.
        """
        self._num_unanswered -= 1
        is_within = self._window.begin <= now < self._window.end
        if is_within:
            self.tally.num_messages += 1
            self.tally.num_steps += self._steps_per_message
        if self._window.begin <= due < self._window.end if self._schedules else is_within:
            self.tally.latencies.record(now - due)

    def failed(self, reason: str) -> None:
        """Counts a message that failed."""
        self._num_unanswered -= 1
        self.tally.errors[reason] += 1

    def finish(self, now: int, *, is_interrupted: bool = False) -> Tally:
        """Ends the run and returns its counts. Unless it was interrupted, each unanswered message failed."""
        end = min(now, self._window.end)
        self.tally.seconds = max(0, end - self._window.begin) * 1e-9
        if self._schedules and self._messages_left is None:
            unsent = sum(schedule.num_due_before(end) for schedule in self._schedules) - self._num_sent
            self.tally.unsent_steps = max(0, unsent) * self._steps_per_message
        if self._num_unanswered and not is_interrupted:
            self.tally.errors["NO_REPLY"] = self._num_unanswered
        return self.tally


def _schedules(options: Options, start: int) -> list[Schedule]:
    """Returns each sender's schedule; none in a closed loop."""
    if not options.rate:
        return []
    messages_per_second = options.rate / options.steps_per_message
    return [
        Schedule.of_stream(number, options.streams, messages_per_second, start_ns=start)
        for number in range(options.streams)
    ]
