"""The arithmetic of the benchmark, on known figures."""

import math

import pytest

from bench.cases import ENVOY_CASES
from bench.figures import Spread, spread, summarise, value_in
from bench.targets import TARGETS, Value
from tests.unit.bench.canned import figures, one_round

SOURCES = {target.name: target.source for target in TARGETS}


def test_ratio_is_of_one_round():
    """The stream's CPU over the echo's; the steps of frames per core second over the cell's, 4 µs a step."""
    assert value_in(one_round(), SOURCES["stream_to_echo"]) == 1.5
    assert value_in(one_round(frame_256=figures(cpu=10.0)), SOURCES["frame_to_cell"]) == pytest.approx(0.4)


def test_value_has_the_unit_of_its_target():
    """Microseconds, milliseconds, or multiples of another server's rate."""
    assert value_in(one_round(), SOURCES["engine_1"]) == pytest.approx(100)
    busy = one_round(frame_1024=figures(cpu=10.0))
    assert value_in(busy, SOURCES["frame_to_triton"]) == pytest.approx(100_000 / 3300)
    assert value_in(one_round(), SOURCES["envoy_unary_to_triton"]) == pytest.approx(10_000 / 3700)
    assert value_in(one_round(), SOURCES["envoy_p99_to_triton"]) == pytest.approx(2.0)


def test_more_steps_per_core_second_is_a_larger_ratio():
    """Though its source is a ratio of costs: a step takes 20 µs, and 100 on the other front."""
    fast = one_round(**{name: figures(cpu=20.0) for name in ENVOY_CASES})
    for name in ("envoy_64_to_grpcio_echo", "envoy_unary_to_grpcio_echo", "envoy_frame_to_grpcio"):
        assert value_in(fast, SOURCES[name]) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("found", "source"),
    [
        (one_round(echo_cpu=0.0), SOURCES["stream_to_echo"]),
        ({}, SOURCES["stream_to_echo"]),
        ({}, SOURCES["start"]),
        (one_round(), Value("no such figure", "stream_64")),
        (one_round(frame_1024=figures(cpu=0.0)), SOURCES["frame_to_triton"]),
    ],
)
def test_figure_that_a_round_did_not_measure_is_nan(found, source):
    """Not every round measures every case; a window too short for the clock must not look like a result."""
    assert math.isnan(value_in(found, source))


def test_ratios_are_taken_within_rounds_and_then_the_median():
    """A round that is twice as slow on both sides has the same ratio."""
    rounds = [one_round(150, 100), one_round(320, 200), one_round(140, 100)]
    summary = summarise(rounds)
    assert summary.targets["stream_to_echo"] == Spread(1.5, 1.4, 1.6)
    assert summary.cases["stream_64"]["cpu_us_per_step"] == Spread(150, 140, 320)


def test_spread_of_an_even_number_of_rounds():
    """The median is the mean of the two in the middle."""
    assert spread([4.0, 1.0, 2.0, 3.0]) == Spread(2.5, 1.0, 4.0)


def test_cases_of_some_rounds_come_from_those():
    """A target whose case no round measured is missed."""
    short = {name: each for name, each in one_round().items() if name not in ("overload", "primed_4")}
    summary = summarise([one_round(overload=figures(rate=800.0)), short])
    assert summary.cases["overload"]["steps_per_second"] == Spread(800, 800, 800)
    assert summary.targets["overload_to_peak"] == Spread(0.8, 0.8, 0.8)
    summary = summarise([short])
    assert "overload" not in summary.cases
    assert "5 times the peak offered: goodput / peak" in summary.missed
    assert "p99 while 8 clients prime / idle" in summary.missed


def test_cases_that_this_machine_cannot_run_are_not_missed():
    """Their targets do not count; all others do."""
    found = {name: each for name, each in one_round().items() if name not in ENVOY_CASES}
    summary = summarise([found], ENVOY_CASES)
    assert {target.name for target in TARGETS} - {target.name for target in summary.wanted} == {
        target.name for target in TARGETS if target.name.startswith("envoy")
    }
    assert not any("envoy" in label for label in summary.missed)
    assert "envoy stream: CPU a step / its echo's" in summarise([found]).missed


def test_targets_are_met_by_their_medians():
    """One bad round of three is noise."""
    rounds = [one_round(130), one_round(500), one_round(120)]
    assert "stream: CPU a step / the echo's" not in summarise(rounds).missed
    assert "stream: CPU a step / the echo's" in summarise(rounds[:2]).missed
