"""What a benchmark says: its tables, its JSON, its picture, its exit status, from canned figures."""

import json

import pytest

from bench import __main__ as command
from bench import report
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
    """Returns the cells of every table's rows, by the first."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_table_shows_every_case_once_with_its_figures():
    """What a case does not have stays empty."""
    text = markdown(one_round())
    rows = rows_of(text)
    assert set(labels().values()) < set(rows)
    assert rows["steps on 64 streams"] == [
        "1,000", "1.00", "2.00", "3.00", "150", "25 %", "50 %", "256"
    ]  # fmt: skip
    assert rows["cell alone, batch 256"] == ["4,000", "", "", "", "4.00", "", "", ""]
    assert text.splitlines()[0] == "A CPU, 2 cores (pinned); 2030-01-02."


def test_lines_fit_a_wide_terminal():
    """With every mark and note that there may be."""
    busy = one_round(echo_half_64=figures(rate=1234567.0, cpu=1234.5, share=1.0))
    assert max(len(line) for line in markdown(busy, cuda=CUDA).splitlines()) <= 124


def test_cases_that_the_generator_limited_are_marked():
    """In the summary and in the table, with what the mark means."""
    busy = one_round(echo_unary_64=figures(share=0.95))
    assert summarise([busy]).limited == ("echo_unary_64",)
    assert "| empty echo: unary, 64 (*)" in markdown(busy)
    assert "(*) the generator was busy" in markdown(busy)
    assert "(*)" not in markdown(one_round())


def test_every_target_stands_with_its_outcome():
    """And its figure over the rounds, its goals and their sides."""
    rows = rows_of(markdown(one_round(150), one_round(120), one_round(200)))
    assert rows["stream: CPU a step / the echo's"] == [
        "missed by 11 %", "1.50", "1.20", "2.00", "≤ 1.35", "≤ 1.15"
    ]  # fmt: skip
    assert rows["start to ready, model warmed"] == [
        "met", "3.00 s", "3.00 s", "3.00 s", "≤ 4 s", "≤ 2.5 s"
    ]  # fmt: skip
    assert rows["p99 while 8 clients prime / idle"][-1] == ""
    assert {target.label for target in TARGETS} < set(rows)


def test_figure_from_elsewhere_is_said_to_be_one():
    """Nobody takes it for a measurement of this machine."""
    text = markdown(one_round())
    assert "Triton's [1]" in text
    assert "[1] Figures from elsewhere: 3,300" in text


def test_envoy_front_that_cannot_be_had_is_a_line(tmp_path):
    """Its rows and targets are left out, of the picture and the JSON too."""
    from bench import plot

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


def test_what_the_columns_have_no_place_for_is_said_below():
    """What was really offered, what was primed meanwhile, what opening took."""
    text = markdown(one_round())
    assert "2,000 steps/s were to be offered, 1,500 sent, 1,000 answered; 7 frames refused" in text
    assert "Beside the single steps 8 clients primed 2,000 steps/s." in text
    assert "1,000 resident sessions took 12.5 µs each to open." in text


def test_rounds_without_some_cases_leave_their_rows_out():
    """Rather than showing zeros; their targets were not measured."""
    short = {name: each for name, each in one_round().items() if name not in ("overload", "resident")}
    rows = rows_of(markdown(short))
    assert labels()["overload"] not in rows
    assert rows["memory a session, without its state row"][:4] == ["not measured", "", "", ""]


def test_gpu_is_a_table_or_one_line():
    """Its latency beside what moving the bytes once would take."""
    assert "CUDA rows were skipped: CUDA is not available." in markdown(one_round())
    text = markdown(one_round(), cuda=CUDA)
    assert "A GPU; the floor moves state rows in and out and weights once, at 2,000 GB/s." in text
    assert rows_of(text)["1,024"] == ["9,000,000", "100", "200", "25.0", "4.00"]


def test_json_holds_targets_and_rounds():
    """And survives JSON."""
    rounds = [one_round()]
    found = report.to_json(ABOUT, Measured(rounds, SKIPPED), summarise(rounds))
    found = json.loads(json.dumps(found, allow_nan=False))
    by_name = {target["name"]: target for target in found["targets"]}
    assert by_name["stream_to_echo"]["figure"] == {"median": 1.5, "least": 1.5, "most": 1.5}
    assert by_name["stream_to_echo"]["outcome"] == "missed by 11 %"
    assert (by_name["start"]["is_met"], by_name["start"]["target"]) == (True, 4)
    assert found["rounds"][0]["stream_64"]["p99_9_seconds"] == 0.003
    assert found["cuda"] == SKIPPED


@pytest.mark.parametrize(
    ("value", "text"), [(1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234"), (0, "0.00")]
)
def test_numbers_have_three_places(value, text):
    """Or all before the point."""
    assert number(value) == text


def test_table_is_aligned_as_text():
    """Words to the left, numbers to the right."""
    assert aligned(("a", "n"), [("word", "1"), ("b", "20")]).splitlines() == [
        "| a    |  n |", "| ---- | -: |", "| word |  1 |", "| b    | 20 |"
    ]  # fmt: skip


def test_plot_is_written(tmp_path):
    """A picture of some size; what it shows is for eyes. Cases and targets may be missing."""
    from bench import plot

    plot.save(tmp_path / "bench.png", ABOUT, summarise([one_round(), one_round(stream_cpu=170)]))
    assert (tmp_path / "bench.png").stat().st_size > 20_000
    short = {name: each for name, each in one_round().items() if name not in ("overload", "resident")}
    plot.save(tmp_path / "short.png", ABOUT, summarise([short]))
    none = one_round(overload=figures(rate=0.0), start={"start_seconds": 1e9})
    plot.save(tmp_path / "none.png", ABOUT, summarise([none]))


@pytest.mark.parametrize(("arguments", "status"), [([], 0), (["--check"], 1)])
def test_a_missed_target_fails_a_check_alone(tmp_path, monkeypatch, capsys, arguments, status):
    """Which names it."""
    monkeypatch.setattr(command, "measure", lambda *_: Measured([one_round()], SKIPPED))
    assert command.main(["--quick", "--out", str(tmp_path), *arguments]) == status
    said = capsys.readouterr()
    assert ("targets missed: stream: CPU a step / the echo's" in said.err) == bool(status)
    assert "| stream: CPU a step / the echo's" in said.out
    assert {path.name for path in tmp_path.iterdir()} == {"quick.json", "quick.md", "quick.png"}
