"""The load's loops over senders that answer as they are told, without a server."""

import asyncio
import time

import pytest
import uvloop

from loadtest.api import OverError
from loadtest.driver import Load, sleep_until
from loadtest.options import Options
from loadtest.plan import Window

BOUND_SECONDS = 60.0
PAUSE_SECONDS = 0.1  # of a closed loop after a refusal


class FakeSender:
    """Answers with the reasons given, one after the other, then calls `then` and waits for ever."""

    def __init__(self, reasons, then=lambda: None):
        self.sent = []
        self._reasons = reasons
        self._then = then

    async def open(self):
        """Needs none."""

    async def send(self, k):
        """Answers the k-th message."""
        self.sent.append(k)
        if k < len(self._reasons):
            if self._reasons[k].startswith("!"):
                raise OverError(self._reasons[k][1:])
            return self._reasons[k]
        self._then()
        return await asyncio.Future()

    async def close(self):
        """Needs none."""


async def load(senders, stop=None, warm_up=0.0, **options):
    """Runs a load over fake senders; it must end by itself."""
    made = Options(target="a:1", streams=len(senders), warm_up=warm_up, seconds=BOUND_SECONDS, **options)
    window = Window.after(time.monotonic_ns(), warm_up, BOUND_SECONDS)
    run = Load(made, senders, window).run(stop or asyncio.Event())
    return await asyncio.wait_for(run, BOUND_SECONDS / 2)


async def test_messages_answered_before_a_stop_count():
    """What is under way then does not, and is no error."""
    stop = asyncio.Event()
    tally = await load([FakeSender([""] * 5, then=stop.set)], stop)
    assert (tally.num_steps, len(tally.latencies), tally.num_errors) == (5, 5, 0)
    assert tally.seconds > 0
    assert len(tally.cpu_seconds) == 1


async def test_messages_of_the_warm_up_do_not_count():
    """Their errors do: a server that fails while it warms up is not well."""
    stop = asyncio.Event()
    tally = await load([FakeSender([""] * 5 + ["OVERLOADED"], then=stop.set)], stop, warm_up=BOUND_SECONDS)
    assert (tally.num_steps, tally.seconds) == (0, 0)
    assert tally.errors == {"OVERLOADED": 1}


async def test_a_broken_sender_ends_alone():
    """The others go on to the bound; when all are broken the load is over."""
    broken, well = FakeSender(["!UNAVAILABLE"]), FakeSender([""] * 100)
    tally = await load([broken, well], max_steps=10)
    assert tally.errors == {"UNAVAILABLE": 1}
    assert broken.sent == [0]
    assert tally.num_steps == 9
    tally = await load([FakeSender(["!UNAVAILABLE"])])
    assert tally.errors == {"UNAVAILABLE": 1}


async def test_bound_on_steps_is_for_all_senders_together():
    """And counts steps, not messages."""
    senders = [FakeSender([""] * 100) for _ in range(3)]
    tally = await load(senders, max_steps=70, mode="prime", frame_steps=10)
    assert tally.num_messages == 7
    assert tally.num_steps == 70
    assert sum(len(sender.sent) for sender in senders) == 7


@pytest.mark.parametrize(
    ("due", "now", "is_open", "num_steps", "num_latencies"),
    [
        (100, 150, True, 1, 1), (190, 250, True, 0, 1), (90, 150, True, 1, 0), (210, 250, True, 0, 0),
        (100, 150, False, 1, 1), (190, 250, False, 0, 0), (90, 150, False, 1, 1), (210, 250, False, 0, 0),
    ],
)  # fmt: skip
def test_answers_count_when_they_come_and_an_open_loops_latencies_when_they_were_due(
    due, now, is_open, num_steps, num_latencies
):
    """So a stall at the window's end is seen, and not only as a lower rate."""
    counting = Load(Options(target="a:1", streams=1), [], Window(0, 100, 200))
    counting._count("", due, now, is_open)
    assert (counting._tally.num_steps, len(counting._tally.latencies)) == (num_steps, num_latencies)


async def test_open_loop_goes_on_while_messages_are_outstanding():
    """As many as it may have: those that are due are sent although no reply has come."""
    stop = asyncio.Event()

    class Unanswered(FakeSender):
        async def send(self, k):
            self.sent.append(k)
            if len(self.sent) == 3:
                stop.set()
            return await asyncio.Future()

    sender = Unanswered([])
    tally = await load([sender], stop, rate=1e6, in_flight=3)
    assert sender.sent == [0, 1, 2]
    assert (tally.num_steps, tally.num_sent_steps) == (0, 3)


async def test_open_loop_does_not_pause_after_a_refusal():
    """Its plan says when to send, not the server; what was refused was sent."""
    stop = asyncio.Event()
    tally = await load([FakeSender(["OVERLOADED"] * 1000, then=stop.set)], stop, rate=1e6)
    assert tally.errors == {"OVERLOADED": 1000}
    assert tally.num_sent_steps == 1001
    assert tally.seconds < 1000 * PAUSE_SECONDS


async def test_open_loop_counts_latency_from_the_planned_time():
    """Messages sent late because one took long have waited, and say so: no omission of what was queued."""
    stop = asyncio.Event()

    class SlowFirst(FakeSender):
        async def send(self, k):
            if k == 0:
                until = time.monotonic() + 0.02  # the server is busy, and so is everything else
                while time.monotonic() < until:
                    pass
            return await super().send(k)

    # Due every millisecond: the first 20 all wait for the first one.
    tally = await load([SlowFirst([""] * 10, then=stop.set)], stop, rate=1000.0)
    assert tally.num_steps == 10
    assert tally.latencies.percentile_seconds(10) > 0.009


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
