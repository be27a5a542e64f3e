"""A result as a table and as JSON, with its warnings; the server's cost, from metrics and from /proc."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from loadtest import report
from loadtest.errors import LoadtestError
from loadtest.latencies import Latencies
from loadtest.options import Options
from loadtest.run import Result
from loadtest.server_side import Reading, cost, parse_metrics, process_tree, quantile, read_process
from loadtest.tally import Tally

METRICS = """\
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 10.5
# TYPE streamcell_steps_total counter
streamcell_steps_total{model="a",version="1"} 100
streamcell_steps_total{model="b",version="1"} 50
# TYPE streamcell_step_seconds histogram
streamcell_step_seconds_bucket{le="0.001",model="a",version="1"} 60
streamcell_step_seconds_bucket{le="+Inf",model="a",version="1"} 100
streamcell_step_seconds_bucket{le="0.001",model="b",version="1"} 20
streamcell_step_seconds_bucket{le="+Inf",model="b",version="1"} 50
streamcell_step_seconds_sum{model="a",version="1"} 1
streamcell_step_seconds_count{model="a",version="1"} 100
"""


def result(server=None, is_interrupted=False, errors=(), cpu_seconds=1.0, **options):
    """Returns a result of 2 s with 1,000 steps of 1 ms each."""
    latencies = Latencies()
    for _ in range(1000):
        latencies.record(1_000_000)
    tally = Tally(
        seconds=2.0, num_steps=1000, num_messages=1000, unsent_steps=40, errors=Counter(errors),
        latencies=latencies, cpu_seconds=[cpu_seconds],
    )  # fmt: skip
    return Result(Options(target="127.0.0.1:1", **options), tally, server, is_interrupted)


class TestResult:
    """A result for people and for programs."""

    def test_json_holds_the_figures_and_survives_json(self):
        """Latencies in seconds, errors by reason, the options of the run."""
        server = cost(Reading(10.0, 0), Reading(10.2, 2000), 1)
        found = json.loads(json.dumps(report.to_json(result(server, errors=["OVERLOADED"] * 3, streams=7))))
        assert found["steps"] == 1000
        assert found["steps_per_second"] == 500
        assert found["errors"] == {"OVERLOADED": 3}
        assert found["num_errors"] == 3
        assert found["latency_seconds"]["max"] == 0.001
        assert found["latency_seconds"]["p99.9"] == pytest.approx(0.001, rel=0.005)
        assert found["generator_core_share"] == 0.5
        assert found["server"]["cpu_us_per_step"] == pytest.approx(100)
        assert found["options"]["streams"] == 7

    def test_table_names_every_figure(self):
        """Steps, rate, errors with their reasons, all percentiles, the generator, the server."""
        buckets = {0.001: 90.0, 0.002: 100.0, float("inf"): 100.0}
        server = cost(Reading(1.0), Reading(1.2, buckets=buckets), 1000)
        table = report.table(result(server, errors=["OVERLOADED", "STEP_GAP", "OVERLOADED"]))
        rows = {line[2:24].strip(): line[24:] for line in table.splitlines() if line.startswith("  ")}
        assert rows["steps"] == "1,000"
        assert rows["steps/s"] == "500"
        assert rows["errors"] == "3 (OVERLOADED 2, STEP_GAP 1)"
        assert rows["latency p50"] == "1.00 ms   (of a message)"
        assert [name for name in rows if name.startswith("latency")] == [
            "latency p50", "latency p90", "latency p99", "latency p99.9", "latency max",
        ]  # fmt: skip
        assert rows["generator"] == "50% of a core"
        assert rows["server CPU"] == "200.0 µs a step"
        assert rows["server's own p50, p99"] == "0.56 ms, 1.90 ms"
        assert "WARNING" not in table

    def test_forecasts_are_called_forecasts(self):
        """Each counts as one, whatever its horizon, and the table says that."""
        table = report.table(result(cost(Reading(1.0), Reading(1.2), 1000), mode="forecast", horizon=7))
        assert "forecasts of 7 steps, each counted as one, 64 at a time" in table
        assert "forecasts/s           500" in table
        assert "200.0 µs a forecast" in table

    def test_rate_that_an_open_loop_sent_is_shown_beside_the_answered_one(self):
        """Steps that an overloaded server refuses were offered too."""
        shown = result(rate=500.0)
        shown.tally.num_sent_steps = 4000
        assert "sent                  2,000 steps/s" in report.table(shown)
        assert report.to_json(shown)["sent_steps_per_second"] == 2000


class TestWarnings:
    """What a reader of the figures must know."""

    @pytest.mark.parametrize(
        ("changes", "warning"),
        [
            ({"cpu_seconds": 1.9}, "the generator used 95% of a core: it was the limit"),
            ({"rate": 1000.0}, "1,000 steps a second were to be offered and 500 were answered; 40 scheduled"),
            ({"is_interrupted": True}, "interrupted"),
        ],
    )
    def test_limits_of_a_result_are_warnings(self, changes, warning):
        """So that nobody takes the generator's limit for the server's."""
        lines = [line for line in report.table(result(**changes)).splitlines() if line.startswith("WARNING")]
        assert len(lines) == 1
        assert lines[0].startswith(f"WARNING: {warning}")

    def test_open_loop_that_kept_its_rate_has_no_warning(self):
        """The table says from where its latencies count."""
        table = report.table(result(rate=500.0))
        assert "WARNING" not in table
        assert "(scheduled time to reply)" in table


class TestMetrics:
    """The text of a metrics endpoint."""

    def test_metrics_are_summed_over_models(self):
        """The steps, and the buckets by bound; the CPU time is the process's."""
        reading = parse_metrics(METRICS)
        assert (reading.cpu_seconds, reading.num_steps) == (10.5, 150)
        assert reading.buckets == {0.001: 80, float("inf"): 150}

    @pytest.mark.parametrize("text", ["", "process_cpu_seconds_total 1\n", "<html>no metrics here</html>"])
    def test_metrics_of_another_server_are_refused(self, text):
        """They are not read as zero."""
        with pytest.raises(ValueError, match=r"."):
            parse_metrics(text)


class TestCost:
    """The difference of two readings."""

    def test_cost_is_the_difference_of_the_readings(self):
        """The server's own count of steps is used, and not the generator's."""
        before = Reading(1.0, 100, {0.001: 50, float("inf"): 50})
        after = Reading(2.0, 1100, {0.001: 50, float("inf"): 150})
        found = cost(before, after, 7)
        assert found.cpu_us_per_step == pytest.approx(1000)
        assert found.p50_seconds == 0.001  # all of them exceed the last finite bound

    def test_cost_of_no_step_is_zero(self):
        """There is no division by zero."""
        assert cost(Reading(1.0), Reading(1.0), 0).cpu_us_per_step == 0.0

    def test_quantile_interpolates_within_its_bucket(self):
        """As Prometheus interpolates."""
        counts = {0.1: 0.0, 0.2: 50.0, 0.4: 100.0, float("inf"): 100.0}
        assert quantile(counts, 0.25) == pytest.approx(0.15)
        assert quantile(counts, 0.75) == pytest.approx(0.3)
        assert quantile({0.1: 0.0, float("inf"): 0.0}, 0.5) is None
        assert quantile({}, 0.5) is None


class TestProcesses:
    """The CPU time of a server on this machine."""

    def test_missing_process_is_named(self):
        """Linux gives out no pid as large as this."""
        with pytest.raises(LoadtestError, match="--server-pid: there is no process 99999999"):
            read_process(99_999_999)
        with pytest.raises(LoadtestError, match="--server-pid: there is no process 99999999"):
            process_tree(99_999_999)

    def test_server_of_several_processes_is_read_as_one(self):
        """With all its descendants, and all their threads."""
        inner = "import sys; print(flush=True); sys.stdin.read()"
        outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
        with subprocess.Popen(
            [sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()  # the inner one runs
            pids = process_tree(process.pid)
            assert len(pids) == 2
            assert pids[0] == process.pid
            assert set(pids) < set(process_tree(os.getpid()))
            each = [read_process(pid).cpu_seconds for pid in pids]
            assert read_process(*pids).cpu_seconds >= sum(each)
            process.stdin.close()
