"""The train command, from a file to an artifact and its report."""

import json

import pytest
import torch

from model.artifact import load_artifact


def weights_of(path):
    """Returns an artifact's tensors by name."""
    return dict(load_artifact(path).script.state_dict())


def test_it_writes_the_artifact_and_a_report(command, tiny, tiny_csv, tmp_path):
    """The command writes artifact, figures and plots; the report has the command and every horizon."""
    status, out, _ = command("train", "--csv", tiny_csv, "--out", tmp_path, "--name", "tiny", *tiny)
    assert status == 0
    folder = tmp_path / "tiny" / "1"
    assert str(folder / "model.pt") in out
    for name in ("loss.png", "forecast.png", "horizons.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    report = (folder / "report.md").read_text()
    assert "python -m model train" in report
    assert "| 4 | model |" in report
    manifest = load_artifact(folder / "model.pt").manifest
    assert manifest.uses_time
    assert manifest.step_interval_seconds == 3600.0
    figures = json.loads((folder / "figures.json").read_text())
    assert "horizons" in json.dumps(figures)


def test_the_same_seed_gives_the_same_weights(command, tiny, tiny_csv, tmp_path):
    """Two runs with the same seed agree to the bit; a run with another seed differs."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        status, _, err = command(
            "train", "--csv", tiny_csv, "--out", tmp_path / name, "--name", "tiny", "--seed", seed, *tiny
        )
        assert status == 0, err
    first, second, other = (weights_of(tmp_path / name / "tiny" / "1" / "model.pt") for name in "abc")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_several_columns_make_one_model(command, tiny, tmp_path):
    """A file of two columns gives a model of two inputs and two outputs, named as in its header."""
    path = tmp_path / "two.csv"
    rows = [
        f"2020-01-{1 + row // 24:02} {row % 24:02}:00:00,{row % 24},{(row * 7) % 11}" for row in range(300)
    ]
    path.write_text("\n".join(["date,load,wind", *rows]) + "\n")
    status, _, err = command("train", "--csv", path, "--out", tmp_path, "--name", "two", *tiny)
    assert status == 0, err
    manifest = load_artifact(tmp_path / "two" / "1" / "model.pt").manifest
    assert [column.name for column in manifest.inputs] == ["load", "wind"]
    assert [output.target for output in manifest.outputs] == ["load", "wind"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rows", "0:20"], "rows"),
        (["--rows", "0:9999"], "9999"),
        (["--columns", "speed"], "speed"),
        (["--hidden", "17"], "hidden"),
        (["--validation", "1.5"], "validation"),
        (["--csv", "missing.csv"], "missing.csv"),
    ],
)
def test_what_cannot_be_trained_is_refused(refused, tiny, tiny_csv, tmp_path, options, said):
    """Rows, columns, files and option values that cannot be used are named in one line."""
    assert said in refused("train", "--csv", tiny_csv, "--out", tmp_path, *tiny, *options)
