"""What Prometheus reads: histograms that count like the library's own, on a page that parses."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry.metrics import SECONDS, STEPS, BatchHistogram, Metrics


def samples(registry):
    """Returns every sample of a registry, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def counted(bounds, observe):
    """Returns the cumulative counts and the sum of a fresh histogram that `observe` has used."""
    histogram = BatchHistogram("h", "A histogram.", bounds).labels("a", "1")
    observe(histogram)
    pairs, total = histogram.cumulative()
    return [count for _, count in pairs], total


EIGHTHS = st.integers(-80, 80).map(lambda eighths: eighths / 8)  # their sums and differences are exact


class TestBatchHistogram:
    """Counts like the library's histogram, and many values at once."""

    @pytest.mark.parametrize("bounds", [SECONDS, STEPS, (1.0,)], ids=["seconds", "steps", "one"])
    def test_a_batch_histogram_counts_like_the_librarys_own(self, bounds):
        """The same observations, on the bounds, between, below and above them, give the same samples."""
        draw = random.Random(7)
        ours, theirs = CollectorRegistry(), CollectorRegistry()
        batch = BatchHistogram("h", "A histogram.", bounds)
        ours.register(batch)
        single = Histogram("h", "A histogram.", ["model", "version"], buckets=bounds, registry=theirs)
        observed = [*bounds, 0.0, bounds[-1] * 2, *(draw.uniform(0, bounds[-1] * 1.5) for _ in range(200))]
        for model in ("a", "b"):
            for value in observed:
                times = draw.randint(1, 5)
                batch.labels(model, "1").observe(value, times)
                for _ in range(times):
                    single.labels(model, "1").observe(value)
        found, wanted = samples(ours), samples(theirs)
        assert found.keys() == wanted.keys()
        assert found == pytest.approx(wanted)

    def test_a_count_of_zero_changes_nothing(self):
        """A block without an applied step leaves the histogram as it was."""
        histogram = BatchHistogram("h", "A histogram.", (1.0,)).labels("a", "1")
        histogram.observe(0.5, 0)
        assert histogram.cumulative() == ([("1.0", 0.0), ("+Inf", 0.0)], 0.0)

    @given(
        bounds=st.lists(EIGHTHS, min_size=1, max_size=8, unique=True).map(sorted),
        values=st.lists(EIGHTHS, max_size=30).map(sorted),
        offset=EIGHTHS,
        before=st.lists(EIGHTHS, max_size=3),
    )
    @settings(max_examples=300, deadline=None)
    @example(bounds=[1.0, 2.0], values=[1.0, 1.0, 2.0], offset=0.0, before=[])
    @example(bounds=[1.0, 2.0], values=[9.0], offset=-9.0, before=[])
    @example(bounds=[1.0], values=[], offset=5.0, before=[2.0])
    def test_many_observed_at_once_count_as_one_by_one(self, bounds, values, offset, before):
        """Ascending values plus an offset, on the bounds and beyond both ends, add to the earlier counts."""

        def together(histogram):
            for value in before:
                histogram.observe(value)
            histogram.observe_all(values, offset)

        def one_by_one(histogram):
            for value in [*before, *(value + offset for value in values)]:
                histogram.observe(value)

        assert counted(bounds, together) == counted(bounds, one_by_one)

    @given(
        values=st.lists(st.floats(0, 20) | st.sampled_from(SECONDS), max_size=50).map(sorted),
        offset=st.floats(-1, 1) | st.sampled_from(SECONDS),
    )
    @settings(max_examples=200, deadline=None)
    def test_many_observed_at_once_are_off_by_no_more_than_rounding(self, values, offset):
        """A value is in a neighbouring bucket only if the bound is within float64's rounding of the value."""
        found, total = counted(SECONDS, lambda histogram: histogram.observe_all(values, offset))
        slack = 1e-14  # some units in the last place of the largest value
        for bound, count in zip([*SECONDS, float("inf")], found, strict=True):
            assert sum(value + offset <= bound - slack for value in values) <= count
            assert count <= sum(value + offset <= bound + slack for value in values)
        assert found == sorted(found)
        assert total == pytest.approx(sum(value + offset for value in values), abs=1e-9)

    def test_labels_name_one_histogram(self):
        """Every call with the same labels returns the same histogram."""
        family = BatchHistogram("h", "A histogram.", (1.0,))
        assert family.labels("a", "1") is family.labels("a", "1")
        assert family.labels("a", "1") is not family.labels("a", "2")

    def test_bounds_rise(self):
        """Buckets are in strictly rising order, as counting by bisection needs."""
        for bounds in (SECONDS, STEPS):
            assert list(bounds) == sorted(set(bounds))


class TestExposition:
    """The page of a server's instruments."""

    def test_the_exposition_parses_and_holds_what_was_counted(self):
        """Prometheus' own parser reads the page back, series by series."""
        metrics = Metrics()
        model = metrics.of_model("m", "1")
        model.step_seconds.observe(0.003, 5)
        model.batch_steps.observe(5)
        model.steps.inc(5)
        model.sessions.set(2)
        metrics.errors.labels("/a/b", "NOT_FOUND", "SESSION_NOT_FOUND").inc()
        metrics.build.info({"version": "0"})
        text = generate_latest(metrics.registry).decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        found = {
            (sample.name, sample.labels.get("le")): sample.value
            for family in families.values()
            for sample in family.samples
            if sample.labels.get("model", "m") == "m"
        }
        assert families["streamcell_step_seconds"].type == "histogram"
        assert found["streamcell_step_seconds_count", None] == 5
        assert found["streamcell_step_seconds_sum", None] == pytest.approx(0.015)
        assert found["streamcell_step_seconds_bucket", "0.002"] == 0
        assert found["streamcell_step_seconds_bucket", "0.003"] == 5
        assert found["streamcell_step_seconds_bucket", "+Inf"] == 5
        assert found["streamcell_steps_total", None] == 5
        assert found["streamcell_sessions_open", None] == 2
        assert found["streamcell_errors_total", None] == 1
        assert "process_resident_memory_bytes" in families

    def test_names_follow_prometheus_conventions(self):
        """Each family has the prefix and a sentence, no `_created` series, and no session in a label."""
        metrics = Metrics()
        metrics.of_model("m", "1")
        families = [family for family in metrics.registry.collect() if family.name.startswith("streamcell")]
        assert len(families) >= 14
        for family in families:
            assert family.documentation.endswith(".")
            for sample in family.samples:
                assert not sample.name.endswith("_created")
                assert "session" not in sample.labels

    def test_two_servers_in_a_process_do_not_share_counts(self):
        """Each Metrics has its own registry."""
        first, second = Metrics(), Metrics()
        first.of_model("m", "1").steps.inc()
        second.of_model("m", "1")
        assert second.registry.get_sample_value("streamcell_steps_total", {"model": "m", "version": "1"}) == 0
