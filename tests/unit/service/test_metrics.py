"""What Prometheus reads: histograms that count like the library's own, in an exposition that parses."""

import random

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import SECONDS, STEPS, BatchHistogram, Metrics


def samples(registry):
    """Returns every sample of a registry, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


@pytest.mark.parametrize("bounds", [SECONDS, STEPS, (1.0,)], ids=["seconds", "steps", "one"])
def test_a_batch_histogram_counts_like_the_librarys_own(bounds):
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


def test_a_count_of_zero_changes_nothing():
    """A block of which no step was applied leaves the histogram as it was."""
    histogram = BatchHistogram("h", "A histogram.", (1.0,)).labels("a", "1")
    histogram.observe(0.5, 0)
    assert histogram.cumulative() == ([("1.0", 0.0), ("+Inf", 0.0)], 0.0)


def test_labels_name_one_histogram():
    """The histogram of a model is the same one however often it is asked for."""
    family = BatchHistogram("h", "A histogram.", (1.0,))
    assert family.labels("a", "1") is family.labels("a", "1")
    assert family.labels("a", "1") is not family.labels("a", "2")


def test_the_exposition_parses_and_holds_what_was_counted():
    """What the endpoint would write is read back by Prometheus' own parser, series by series."""
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


def test_names_follow_prometheus_conventions():
    """Every family of ours has the prefix and a sentence, no `_created` series, and no session in a label."""
    metrics = Metrics()
    metrics.of_model("m", "1")
    families = [family for family in metrics.registry.collect() if family.name.startswith("streamcell")]
    assert len(families) >= 14
    for family in families:
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert not sample.name.endswith("_created")
            assert "session" not in sample.labels


def test_bounds_rise():
    """Buckets are in strictly rising order, else counting by bisection would be wrong."""
    for bounds in (SECONDS, STEPS):
        assert list(bounds) == sorted(set(bounds))


def test_two_servers_in_a_process_do_not_share_counts():
    """Each Metrics has a registry of its own."""
    first, second = Metrics(), Metrics()
    first.of_model("m", "1").steps.inc()
    second.of_model("m", "1")
    assert second.registry.get_sample_value("streamcell_steps_total", {"model": "m", "version": "1"}) == 0
