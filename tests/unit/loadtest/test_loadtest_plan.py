"""The schedule of an open loop: an even pace over all streams. The window of a run."""

import pytest

from loadtest.plan import Schedule, Window

START = 5_000_000_000


def test_streams_take_turns_at_an_even_pace():
    """1,000 messages a second on 4 streams: one every millisecond, each of the next stream."""
    schedules = [Schedule.of_stream(number, 4, 1000, START) for number in range(4)]
    due = sorted(schedule.due(k) for schedule in schedules for k in range(3))
    assert due == [START + k * 1_000_000 for k in range(12)]


def test_schedule_keeps_its_pace_over_an_hour():
    """Rounding errors do not add up: the millionth message is due when it should be."""
    schedule = Schedule.of_stream(0, 3, 700, START)
    assert schedule.due(1_000_000) == START + round(1_000_000 * 3 / 700 * 1e9)


@pytest.mark.parametrize(("elapsed_ns", "num_due"), [(-1, 0), (0, 0), (1, 1), (4_000_000, 1), (4_000_001, 2)])
def test_messages_due_before_an_instant(elapsed_ns, num_due):
    """A message due at the instant itself is not before it."""
    assert Schedule.of_stream(0, 4, 1000, START).num_due_before(START + elapsed_ns) == num_due


def test_window_follows_the_warm_up():
    """It begins after the warm-up and lasts as many seconds as are measured."""
    assert Window.after(START, 0.5, 2.0) == Window(START, START + 500_000_000, START + 2_500_000_000)
