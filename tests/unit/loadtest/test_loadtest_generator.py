"""The generator: when messages are due in both loops, and what counts. Each test says the instants."""

import pytest

from loadtest.generator import Generator
from loadtest.options import Options
from loadtest.plan import Window

WINDOW = Window(0, 100, 200)


def generator(window=WINDOW, **options):
    """Returns a generator over one sender, unless `options` say otherwise."""
    return Generator(Options(target="a:1", **{"streams": 1} | options), window)


class TestClosedLoop:
    """Without a rate a sender's next message is due at once."""

    def test_next_message_is_due_when_the_last_is_answered(self):
        """From the start until the window ends, whatever the sender."""
        load = generator(streams=2)
        assert [load.next_due(sender, now) for sender, now in ((0, 0), (1, 7), (0, 150), (1, 199))] == [
            0, 7, 150, 199
        ]  # fmt: skip
        assert load.next_due(0, 200) is None

    def test_bound_on_steps_counts_whole_messages_after_the_warm_up(self):
        """The senders share it: 25 steps are two messages of ten."""
        load = generator(streams=2, mode="prime", frame_steps=10, max_steps=25)
        assert [load.next_due(0, 50), load.next_due(1, 50)] == [50, 50]
        assert [load.next_due(sender, 150) for sender in (0, 1, 0, 1)] == [150, 150, None, None]


class TestOpenLoop:
    """With a rate messages are due by a schedule."""

    def test_senders_take_turns_by_the_schedule_whatever_is_answered(self):
        """A message every 25 ns, of the next sender."""
        load = generator(streams=2, rate=4e7)
        assert [load.next_due(sender, 0) for sender in (0, 1, 0, 1)] == [0, 25, 50, 75]
        assert load.is_open_loop

    def test_message_keeps_the_due_time_that_it_missed(self):
        """Its latency counts from there: the wait before sending is part of it (coordinated omission)."""
        load = generator(rate=1e7)
        due = load.next_due(0, 0)
        assert [due, load.next_due(0, 190), load.next_due(0, 190)] == [0, 100, None]
        load.sent(190)
        load.answered(100, 199)
        assert load.tally.latencies.max_seconds == pytest.approx(99e-9)

    def test_scheduled_messages_that_were_not_sent_are_counted_at_the_end(self):
        """20 were due before the end, 3 were sent; a run that was interrupted counts to its own end."""
        load = generator(rate=1e8)
        for _ in range(3):
            load.sent(load.next_due(0, 0))
        load.failed("OVERLOADED")
        assert load.finish(120, is_interrupted=True).unsent_steps == 12 - 3
        tally = load.finish(1000)
        assert (tally.unsent_steps, tally.num_sent_steps) == (20 - 3, 0)
        assert tally.errors == {"OVERLOADED": 1, "NO_REPLY": 2}

    def test_run_with_a_bound_on_steps_leaves_nothing_unsent(self):
        """It ends because all its messages are sent."""
        load = generator(rate=1e8, max_steps=3)
        assert load.finish(120).unsent_steps == 0


class TestCounting:
    """What the tally holds after an answer, and at the end."""

    @pytest.mark.parametrize(
        ("due", "now", "is_open", "num_steps", "num_latencies"),
        [
            (100, 150, True, 1, 1), (190, 250, True, 0, 1), (90, 150, True, 1, 0), (210, 250, True, 0, 0),
            (100, 150, False, 1, 1), (190, 250, False, 0, 0), (90, 150, False, 1, 1), (210, 250, False, 0, 0),
        ],
    )  # fmt: skip
    def test_answers_count_when_they_come_and_an_open_loops_latencies_when_they_were_due(
        self, due, now, is_open, num_steps, num_latencies
    ):
        """So a stall at the window's end is seen, and not only as a lower rate."""
        load = generator(rate=1.0 if is_open else 0.0)
        load.sent(due)
        load.answered(due, now)
        assert (load.tally.num_steps, len(load.tally.latencies)) == (num_steps, num_latencies)

    def test_steps_sent_count_within_the_window_whatever_becomes_of_them(self):
        """The bounds are the window's: its first instant is in it, its end is not."""
        load = generator(mode="prime", frame_steps=10)
        for now in (99, 100, 199, 200):
            load.sent(now)
        assert (load.tally.num_sent_steps, load.num_unanswered) == (20, 4)

    def test_seconds_are_the_windows_as_far_as_the_run_went(self):
        """None of them lies before the window, or after it."""
        assert [generator().finish(now).seconds for now in (50, 150, 250)] == pytest.approx(
            [0, 50e-9, 100e-9]
        )

    def test_unanswered_messages_of_an_interrupted_run_are_no_errors(self):
        """Nobody waited for their answers."""
        load = generator()
        load.sent(150)
        assert load.finish(160, is_interrupted=True).num_errors == 0
