"""The output of a benchmark: tables, JSON, picture and exit status, of known figures."""

import json

import pytest

from bench import __main__ as command
from bench import plot, report
from bench.cases import ENVOY_CASES, labels
from bench.figures import summarise
from bench.rounds import Measured
from bench.tables import aligned, number
from bench.targets import TARGETS
from tests.unit.bench.canned import ABOUT, figures, one_round

SKIPPED = {"skipped": "CUDA is not available"}
CUDA = {
    "device": "A GPU",
    "copy_bytes_per_second": 2e12,
    "batches": [
        {"batch": 1024, "p50_seconds": 1e-4, "p99_seconds": 2e-4, "steps_per_second": 9e6,
         "floor_seconds": 2.5e-5},
    ],
}  # fmt: skip


def markdown(*rounds, cuda=SKIPPED):
    """Returns the tables of some rounds."""
    return report.markdown(ABOUT, Measured(list(rounds), cuda), summarise(rounds))


def rows_of(text):
    """Returns the cells of each table row after the first, by the first cell."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: row[1:] for row in rows}


class TestCases:
    """The table of all cases."""

    def test_table_shows_every_case_once_with_its_figures(self):
        """Figures that a case does not have are empty."""
        text = markdown(one_round())
        rows = rows_of(text)
        assert set(labels().values()) < set(rows)
        assert rows["steps on 64 streams"] == [
            "1,000", "1.00", "2.00", "3.00", "150", "25 %", "50 %", "256"
        ]  # fmt: skip
        assert rows["cell alone, batch 256"] == ["4,000", "", "", "", "4.00", "", "", ""]
        assert text.splitlines()[0] == "A CPU, 2 cores (pinned); 2030-01-02."

    def test_lines_fit_a_wide_terminal(self):
        """With all marks and notes."""
        busy = one_round(echo_half_64=figures(rate=1234567.0, cpu=1234.5, share=1.0))
        assert max(len(line) for line in markdown(busy, cuda=CUDA).splitlines()) <= 124

    def test_cases_that_the_generator_limited_are_marked(self):
        """In the summary and in the table, with a note that explains the mark."""
        busy = one_round(echo_unary_64=figures(share=0.95))
        assert summarise([busy]).limited == ("echo_unary_64",)
        assert "| empty echo: unary, 64 (*)" in markdown(busy)
        assert "(*) the generator was busy" in markdown(busy)
        assert "(*)" not in markdown(one_round())

    def test_figures_without_a_column_are_notes(self):
        """The load that was really offered, the rate of priming, the time to open a session."""
        text = markdown(one_round())
        assert "2,000 steps/s were to be offered, 1,500 sent, 1,000 answered; 7 frames refused" in text
        assert "Beside the single steps 8 clients primed 2,000 steps/s." in text
        assert "1,000 resident sessions took 12.5 µs each to open." in text

    def test_rounds_without_some_cases_leave_their_rows_out(self):
        """Their targets were not measured."""
        short = {name: each for name, each in one_round().items() if name not in ("overload", "resident")}
        rows = rows_of(markdown(short))
        assert labels()["overload"] not in rows
        assert rows["memory a session, without its state row"][:4] == ["not measured", "", "", ""]

    def test_missing_envoy_front_is_a_line(self, tmp_path):
        """Its rows and targets are left out, also of the picture and the JSON."""
        found = {name: each for name, each in one_round().items() if name not in ENVOY_CASES}
        measured = Measured([found], SKIPPED, "envoy needs something")
        summary = summarise([found], measured.left_out)
        text = report.markdown(ABOUT, measured, summary)
        assert "The rows of the envoy front were left out: envoy needs something." in text
        assert not any(row.startswith("envoy") for row in rows_of(text))
        assert "left out" not in markdown(one_round())
        found = report.to_json(ABOUT, measured, summary)
        assert found["no_envoy"] == "envoy needs something"
        assert not any(target["name"].startswith("envoy") for target in found["targets"])
        plot.save(tmp_path / "bench.png", ABOUT, summary)

    def test_gpu_has_a_table_or_one_line(self):
        """Its latency is beside the time to move the bytes once."""
        assert "CUDA rows were skipped: CUDA is not available." in markdown(one_round())
        text = markdown(one_round(), cuda=CUDA)
        assert "A GPU; the floor moves state rows in and out and weights once, at 2,000 GB/s." in text
        assert rows_of(text)["1,024"] == ["9,000,000", "100", "200", "25.0", "4.00"]


class TestTargets:
    """The table of all targets."""

    def test_every_target_is_shown_with_its_outcome(self):
        """With its figure over the rounds, and its goals."""
        rows = rows_of(markdown(one_round(150), one_round(120), one_round(200)))
        assert rows["stream: CPU a step / the echo's"] == [
            "missed by 11 %", "1.50", "1.20", "2.00", "≤ 1.35", "≤ 1.15"
        ]  # fmt: skip
        assert rows["start to ready, model warmed"] == [
            "met", "3.00 s", "3.00 s", "3.00 s", "≤ 4 s", "≤ 2.5 s"
        ]  # fmt: skip
        assert rows["p99 while 8 clients prime / idle"][-1] == ""
        assert {target.label for target in TARGETS} < set(rows)

    def test_figure_from_elsewhere_is_marked(self):
        """So that nobody takes it for a measurement on this machine."""
        text = markdown(one_round())
        assert "Triton's [1]" in text
        assert "[1] Figures from elsewhere: 3,300" in text


class TestFiles:
    """The JSON and the picture."""

    def test_json_holds_targets_and_rounds(self):
        """It can be written and read again as JSON."""
        rounds = [one_round()]
        found = report.to_json(ABOUT, Measured(rounds, SKIPPED), summarise(rounds))
        found = json.loads(json.dumps(found, allow_nan=False))
        by_name = {target["name"]: target for target in found["targets"]}
        assert by_name["stream_to_echo"]["figure"] == {"median": 1.5, "least": 1.5, "most": 1.5}
        assert by_name["stream_to_echo"]["outcome"] == "missed by 11 %"
        assert (by_name["start"]["is_met"], by_name["start"]["target"]) == (True, 4)
        assert found["rounds"][0]["stream_64"]["p99_9_seconds"] == 0.003
        assert found["cuda"] == SKIPPED

    def test_plot_is_written(self, tmp_path):
        """The file has some size; only eyes can check more. Cases and targets may be missing."""
        plot.save(tmp_path / "bench.png", ABOUT, summarise([one_round(), one_round(stream_cpu=170)]))
        assert (tmp_path / "bench.png").stat().st_size > 20_000
        short = {name: each for name, each in one_round().items() if name not in ("overload", "resident")}
        plot.save(tmp_path / "short.png", ABOUT, summarise([short]))
        none = one_round(overload=figures(rate=0.0), start={"start_seconds": 1e9})
        plot.save(tmp_path / "none.png", ABOUT, summarise([none]))


class TestTables:
    """How tables and numbers are written."""

    @pytest.mark.parametrize(
        ("value", "text"), [(1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234"), (0, "0.00")]
    )
    def test_numbers_have_three_digits(self, value, text):
        """Or all digits before the point."""
        assert number(value) == text

    def test_table_is_aligned_as_text(self):
        """Words to the left, numbers to the right."""
        assert aligned(("a", "n"), [("word", "1"), ("b", "20")]).splitlines() == [
            "| a    |  n |", "| ---- | -: |", "| word |  1 |", "| b    | 20 |"
        ]  # fmt: skip


class TestCommand:
    """The exit status."""

    @pytest.mark.parametrize(("arguments", "status"), [([], 0), (["--check"], 1)])
    def test_a_missed_target_fails_only_a_check(self, tmp_path, monkeypatch, capsys, arguments, status):
        """The error names it."""
        monkeypatch.setattr(command, "measure", lambda *_: Measured([one_round()], SKIPPED))
        assert command.main(["--quick", "--out", str(tmp_path), *arguments]) == status
        said = capsys.readouterr()
        assert ("targets missed: stream: CPU a step / the echo's" in said.err) == bool(status)
        assert "| stream: CPU a step / the echo's" in said.out
        assert {path.name for path in tmp_path.iterdir()} == {"quick.json", "quick.md", "quick.png"}
