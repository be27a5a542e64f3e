"""The driver over senders that answer as a test tells them, without a server."""

import asyncio
import time

import pytest
import uvloop

from loadtest.driver import drive, sleep_until
from loadtest.options import Options
from loadtest.plan import Window
from loadtest.senders import SenderBrokenError

BOUND_SECONDS = 60.0


class FakeSender:
    """Answers with the given reasons, one after the other, then calls `then` and waits for ever."""

    def __init__(self, reasons, then=lambda: None):
        self.sent = []
        self._reasons = reasons
        self._then = then

    async def open(self):
        """Prepares nothing."""

    async def send(self):
        """Answers the next message; "!REASON" breaks the sender."""
        k = len(self.sent)
        self.sent.append(k)
        if k < len(self._reasons):
            if self._reasons[k].startswith("!"):
                raise SenderBrokenError(self._reasons[k][1:])
            return self._reasons[k]
        self._then()
        return await asyncio.Future()

    async def close(self):
        """Ends nothing."""


async def load(senders, stop=None, warm_up=0.0, **options):
    """Runs a load over fake senders, which must end by itself."""
    made = Options(target="a:1", streams=len(senders), warm_up=warm_up, seconds=BOUND_SECONDS, **options)
    window = Window.after(time.monotonic_ns(), warm_up, BOUND_SECONDS)
    run = drive(made, senders, window, stop or asyncio.Event())
    return await asyncio.wait_for(run, BOUND_SECONDS / 2)


class TestEnd:
    """A run ends at a stop, at the bound on steps, or when all senders are broken."""

    async def test_messages_answered_before_a_stop_count(self):
        """A message that is then outstanding does not count, and is no error."""
        stop = asyncio.Event()
        tally = await load([FakeSender([""] * 5, then=stop.set)], stop)
        assert (tally.num_steps, len(tally.latencies), tally.num_errors) == (5, 5, 0)
        assert tally.seconds > 0
        assert len(tally.cpu_seconds) == 1

    async def test_messages_of_the_warm_up_do_not_count(self):
        """Their errors do: a server that fails while it warms up is not well."""
        stop = asyncio.Event()
        sender = FakeSender([""] * 5 + ["OVERLOADED"], then=stop.set)
        tally = await load([sender], stop, warm_up=BOUND_SECONDS)
        assert (tally.num_steps, tally.seconds) == (0, 0)
        assert tally.errors == {"OVERLOADED": 1}

    async def test_a_broken_sender_ends_alone(self):
        """The others go on to the bound; when all are broken the load is over."""
        broken, well = FakeSender(["!UNAVAILABLE"]), FakeSender([""] * 100)
        tally = await load([broken, well], max_steps=10)
        assert tally.errors == {"UNAVAILABLE": 1}
        assert broken.sent == [0]
        assert tally.num_steps == 9
        tally = await load([FakeSender(["!UNAVAILABLE"])])
        assert tally.errors == {"UNAVAILABLE": 1}

    async def test_bound_on_steps_is_for_all_senders_together(self):
        """It counts steps, not messages."""
        senders = [FakeSender([""] * 100) for _ in range(3)]
        tally = await load(senders, max_steps=70, mode="prime", frame_steps=10)
        assert tally.num_messages == 7
        assert tally.num_steps == 70
        assert sum(len(sender.sent) for sender in senders) == 7


class TestOpenLoop:
    """Messages are sent by the schedule, whatever comes back."""

    async def test_goes_on_while_messages_are_outstanding(self):
        """Up to `in_flight` messages are sent when they are due although no reply has come."""
        stop = asyncio.Event()

        class Unanswered(FakeSender):
            async def send(self):
                self.sent.append(len(self.sent))
                if len(self.sent) == 3:
                    stop.set()
                return await asyncio.Future()

        sender = Unanswered([])
        tally = await load([sender], stop, rate=1e6, in_flight=3)
        assert sender.sent == [0, 1, 2]
        assert (tally.num_steps, tally.num_sent_steps) == (0, 3)

    async def test_does_not_pause_after_a_refusal(self, monkeypatch):
        """The schedule says when to send, not the server; what was refused was sent."""
        monkeypatch.setattr("loadtest.driver._PAUSE_SECONDS", 10 * BOUND_SECONDS)
        stop = asyncio.Event()
        tally = await load([FakeSender(["OVERLOADED"] * 1000, then=stop.set)], stop, rate=1e6)
        assert tally.errors == {"OVERLOADED": 1000}
        assert tally.num_sent_steps == 1001

    async def test_counts_latency_from_the_scheduled_time(self):
        """Messages that are sent late because one took long have waited, and their latency shows it."""
        stop = asyncio.Event()

        class SlowFirst(FakeSender):
            async def send(self):
                if not self.sent:
                    until = time.monotonic() + 0.02  # the server is busy, and so is everything else
                    while time.monotonic() < until:
                        pass
                return await super().send()

        # Due every millisecond: the first 20 all wait for the first one.
        tally = await load([SlowFirst([""] * 10, then=stop.set)], stop, rate=1000.0)
        assert tally.num_steps == 10
        assert tally.latencies.percentile_seconds(10) > 0.009


class TestClosedLoop:
    """The next message is sent when the last one is answered."""

    async def test_pauses_after_a_refusal(self, monkeypatch):
        """A server asks for that: the refused sender sends no more in a pause that outlasts the others."""
        monkeypatch.setattr("loadtest.driver._PAUSE_SECONDS", 10 * BOUND_SECONDS)
        stop = asyncio.Event()
        refused, well = FakeSender(["OVERLOADED", ""]), FakeSender([""] * 100, then=stop.set)
        tally = await load([refused, well], stop)
        assert refused.sent == [0]
        assert (tally.num_steps, tally.errors) == (100, {"OVERLOADED": 1})


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_no_sleep_ends_before_its_instant(new_loop):
    """Loops round their timers, some to a millisecond: a message must not count as sent before the window."""

    async def late_by_ns(nanoseconds):
        instant = time.monotonic_ns() + nanoseconds
        await sleep_until(instant)
        return time.monotonic_ns() - instant

    async def least():
        return min([await late_by_ns(number * 100_000) for number in range(50)])

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(least()) >= 0
