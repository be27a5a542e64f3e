"""Backoff over a clock that only sleeping moves."""

import pytest
from fake_streamcell import FakeTime
from streamcell import errors
from streamcell.retry import Backoff, Sources, is_passing
from streamcell.values import RetryPolicy

LOST = errors.ConnectionLost("lost")


def backoff(fake_time, uniform=lambda low, high: high, **policy):
    """A pace by this policy on the fake clock."""
    return Backoff(RetryPolicy(**policy), Sources(fake_time.now, fake_time.sleep, uniform))


async def fail(pace, times, error=LOST):
    """Fails an operation so many times."""
    for _ in range(times):
        await pace.pause(error)


async def test_delays_double_up_to_the_largest(fake_time):
    """The ceiling of the delay grows by the multiplier and stays at max_delay_seconds."""
    pace = backoff(fake_time, initial_delay_seconds=0.1, max_delay_seconds=0.5, multiplier=2.0)
    await fail(pace, 5)
    assert fake_time.sleeps == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])


async def test_jitter_is_full(fake_time):
    """Delays are drawn from all of zero to the ceiling."""
    asked = []

    def uniform(low, high):
        asked.append((low, high))
        return high / 4

    await fail(backoff(fake_time, uniform, initial_delay_seconds=1.0), 2)
    assert asked == [(0.0, 1.0), (0.0, 2.0)]
    assert fake_time.sleeps == [0.25, 0.5]


async def test_attempts_are_bounded(fake_time):
    """The last attempt's error is raised and no longer slept upon; one attempt never retries."""
    pace = backoff(fake_time, max_attempts=3)
    await fail(pace, 2)
    with pytest.raises(errors.ConnectionLost) as caught:
        await pace.pause(LOST)
    assert caught.value is LOST
    assert len(fake_time.sleeps) == 2
    with pytest.raises(errors.ConnectionLost):
        await backoff(fake_time, max_attempts=1).pause(LOST)


async def test_total_time_is_bounded(fake_time):
    """No delay is begun that would end after max_total_seconds, counted from the first failure."""
    fake_time.now_seconds = 1000.0
    pace = backoff(fake_time, max_total_seconds=10.0, initial_delay_seconds=4.0, max_delay_seconds=4.0)
    await fail(pace, 2)
    with pytest.raises(errors.ConnectionLost):
        await pace.pause(LOST)
    assert sum(fake_time.sleeps) == 8.0


async def test_success_counts_anew(fake_time):
    """After a success the delays, the attempts and the time start over."""
    pace = backoff(fake_time, max_attempts=3, max_total_seconds=1.0, initial_delay_seconds=0.3)
    for _ in range(5):
        await fail(pace, 2)
        pace.succeeded()
    assert fake_time.sleeps == pytest.approx([0.3, 0.6] * 5)


async def test_the_server_s_delay_comes_on_top(fake_time):
    """OVERLOADED is waited for as long as it asks, plus the jitter, also beyond max_delay_seconds."""
    busy = errors.Overloaded("busy", retry_delay_seconds=7.0)
    await fail(backoff(fake_time, initial_delay_seconds=0.5, max_delay_seconds=1.0), 2, busy)
    assert fake_time.sleeps == [7.5, 8.0]


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (errors.ConnectionLost("x"), True),
        (errors.Draining("x"), True),
        (errors.StoreUnavailable("x"), True),
        (errors.Overloaded("x"), True),
        (errors.SessionsFull("x"), False),
        (errors.DeadlineExceeded("x"), False),
        (errors.SessionNotFound("x"), False),
        (errors.Fenced("x"), False),
        (errors.ServerInternal("x"), False),
    ],
)
async def test_only_passing_errors_are_waited_for(error, passing):
    """Errors that another attempt would meet again are raised at once."""
    fake_time = FakeTime()
    assert is_passing(error) is passing
    pace = backoff(fake_time)
    if passing:
        await pace.pause(error)
    else:
        with pytest.raises(type(error)):
            await pace.pause(error)
    assert bool(fake_time.sleeps) is passing
