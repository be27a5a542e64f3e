"""Percentiles, exact within half a percent, and the counts of several processes added up."""

import numpy as np
import pytest

from loadtest.latencies import Latencies
from loadtest.tally import Tally, add_up


def recorded(values_ns):
    """Returns a histogram of these values."""
    latencies = Latencies()
    for value in values_ns:
        latencies.record(int(value))
    return latencies


class TestPercentiles:
    """Exact within half a percent."""

    @pytest.mark.parametrize("percent", [50, 90, 99, 99.9])
    def test_percentile_is_the_smallest_value_that_the_share_does_not_exceed(self, percent):
        """Within half a percent, with more values than are put into buckets at once."""
        values = np.random.default_rng(7).lognormal(15, 1.5, 30_000).astype(int)
        exact = np.percentile(values, percent, method="inverted_cdf") * 1e-9
        assert recorded(values).percentile_seconds(percent) == pytest.approx(exact, rel=0.005)

    def test_a_single_latency_is_every_percentile(self):
        """The largest one is exact."""
        latencies = recorded([1_234_567])
        assert latencies.max_seconds == 1_234_567 * 1e-9
        assert latencies.percentile_seconds(0.1) == pytest.approx(1_234_567e-9, rel=0.005)
        assert latencies.percentile_seconds(100) <= latencies.max_seconds

    def test_one_slow_message_in_a_thousand_shows_only_above_its_percentile(self):
        """99.9 % are fast, so the percentile 99.9 is too."""
        latencies = recorded([1_000_000] * 999 + [500_000_000])
        assert latencies.percentile_seconds(99.9) == pytest.approx(1e-3, rel=0.005)
        assert latencies.percentile_seconds(99.95) == pytest.approx(0.5, rel=0.005)

    def test_percentile_of_no_latency_is_zero(self):
        """A run that measured nothing has a report, and no error."""
        assert recorded([]).percentile_seconds(50) == 0.0
        assert recorded([]).max_seconds == 0.0

    def test_values_beyond_the_buckets_count_in_the_first_and_the_last(self):
        """No value is lost."""
        latencies = recorded([1, 10**15])
        assert len(latencies) == 2
        assert latencies.percentile_seconds(50) < 2e-6


class TestTally:
    """Counts and rates."""

    def test_sum_of_processes_is_what_one_would_have_counted(self):
        """The counts pass through the JSON in which a process sends them."""
        values = np.random.default_rng(3).integers(10_000, 10_000_000, 5_000)
        halves = [
            Tally(
                seconds=2.0,
                num_steps=10,
                num_messages=5,
                unsent_steps=1,
                latencies=recorded(half),
                cpu_seconds=[0.5],
            )
            for half in np.split(values, 2)
        ]
        halves[1].errors["OVERLOADED"] += 3
        total = add_up(Tally.from_json(half.to_json()) for half in halves)
        whole = recorded(values)
        assert (total.num_steps, total.num_messages, total.unsent_steps, total.num_errors) == (20, 10, 2, 3)
        assert total.seconds == 2.0
        assert total.cpu_seconds == [0.5, 0.5]
        assert total.latencies.to_json() == whole.to_json()

    def test_rates_are_per_second_of_the_window(self):
        """Steps a second, and the share of a core that the busiest process used."""
        tally = Tally(seconds=4.0, num_steps=1000, cpu_seconds=[1.0, 3.0])
        assert tally.steps_per_second == 250
        assert tally.busiest_core == 0.75
        assert Tally().steps_per_second == Tally().busiest_core == 0.0
