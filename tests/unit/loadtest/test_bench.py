"""The benchmark's arithmetic and its table, from canned figures."""

import math

import pytest

from bench import report
from bench.cases import CASES, CELL_LABELS, RATIOS, labels
from bench.figures import Spread, ratio_in, spread, summarise
from bench.rounds import QUICK, figures_of


def figures(rate=1000.0, cpu=100.0, share=0.5):
    """Returns the figures of a case in one round."""
    return {
        "steps_per_second": rate,
        "p50_seconds": 0.001,
        "p99_seconds": 0.002,
        "cpu_us_per_step": cpu,
        "peak_memory_bytes": 256 << 20,
        "generator_core_share": share,
    }


def one_round(stream_cpu=150.0, echo_cpu=100.0, **changes):
    """Returns a round of all cases."""
    found = {case.name: figures() for case in CASES}
    found |= {name: {"steps_per_second": 4000.0, "cpu_us_per_step": 4.0} for name in CELL_LABELS}
    found["stream_64"] = figures(cpu=stream_cpu)
    found["echo_stream_64"] = figures(cpu=echo_cpu)
    return found | changes


ABOUT = report.About("2030-01-02", {"cpu": "A CPU", "cores": "2", "python": "3.11"}, "pinned", QUICK)


def test_ratio_is_of_one_round():
    """The stream's CPU over the echo's; the rate of frames over the cell's."""
    by_name = {ratio.name: ratio for ratio in RATIOS}
    assert ratio_in(one_round(), by_name["stream_to_echo"]) == 1.5
    assert ratio_in(one_round(), by_name["frame_to_cell"]) == 0.25


def test_ratio_over_nothing_is_not_a_number():
    """A window too short for the clock's tick must not look like a result."""
    by_name = {ratio.name: ratio for ratio in RATIOS}
    assert math.isnan(ratio_in(one_round(echo_cpu=0.0), by_name["stream_to_echo"]))


def test_ratios_are_taken_within_rounds_and_then_the_median():
    """A round twice as slow on both sides leaves the ratio as it is."""
    rounds = [one_round(150, 100), one_round(320, 200), one_round(140, 100)]
    summary = summarise(rounds)
    assert summary.ratios["stream_to_echo"] == Spread(1.5, 1.4, 1.6)
    assert summary.cases["stream_64"]["cpu_us_per_step"] == Spread(150, 140, 320)


def test_spread_of_an_even_number_of_rounds():
    """The median lies between the two in the middle."""
    assert spread([4.0, 1.0, 2.0, 3.0]) == Spread(2.5, 1.0, 4.0)


def test_cases_that_the_generator_limited_are_marked():
    """In the summary and in the table, with what the mark means."""
    summary = summarise([one_round(echo_unary_64=figures(share=0.95))])
    assert summary.limited == ("echo_unary_64",)
    table = report.markdown(ABOUT, summary)
    assert "| empty echo: unary, 64 (*)" in table
    assert "(*) the generator was busy" in table
    assert "(*)" not in report.markdown(ABOUT, summarise([one_round()]))


def test_table_shows_every_case_once_with_its_figures():
    """Aligned columns; what a case does not have stays empty."""
    lines = report.markdown(ABOUT, summarise([one_round()])).splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}
    assert set(labels().values()) < set(rows)
    cells = [cell.strip() for cell in rows["steps on 64 streams"].split("|")[2:-1]]
    assert cells == ["1,000", "1.00 ms", "2.00 ms", "150.0 µs", "256 MiB"]
    cells = [cell.strip() for cell in rows["cell alone, batch 256"].split("|")[2:-1]]
    assert cells == ["4,000", "", "", "4.0 µs", ""]
    assert [cell.strip() for cell in rows[RATIOS[0].label].split("|")[2:-1]] == ["1.50", "1.50", "1.50"]
    assert len({len(line) for line in lines if line.startswith("|") and "%" not in line}) <= 2
    assert lines[0] == "A CPU, 2 cores (pinned); 2030-01-02."


def test_every_case_has_a_label_and_every_ratio_its_cases():
    """What is measured is what is shown."""
    assert set(labels()) == {case.name for case in CASES} | set(CELL_LABELS)
    assert {name for ratio in RATIOS for name in (ratio.over, ratio.under)} <= set(labels())


def test_a_system_without_peak_memory_leaves_it_out():
    """Rather than showing zero."""
    result = {
        "steps_per_second": 5.0,
        "latency_seconds": {"p50": 0.1, "p99": 0.2},
        "server": {"cpu_us_per_step": 7.0},
        "generator_core_share": 0.1,
    }
    kept = figures_of(result, None)
    summary = summarise([one_round(stream_1=kept)])
    assert "peak_memory_bytes" not in summary.cases["stream_1"]
    assert summary.cases["stream_1"]["p99_seconds"].median == 0.2


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_load_is_one_that_loadtest_takes(case):
    """Its options parse."""
    from loadtest.options import parse

    options = parse(["--target", "a:1", *case.arguments()])
    assert (options.mode, options.streams) == (case.mode, case.streams)


def test_plot_is_written(tmp_path):
    """A picture of some size; what it shows is for eyes."""
    from bench import plot

    plot.save(tmp_path / "bench.png", ABOUT, summarise([one_round(), one_round(stream_cpu=170)]))
    assert (tmp_path / "bench.png").stat().st_size > 20_000
