"""The shipped artifacts: small, and better than simple forecasts on rows that they were not trained on."""

import pathlib
import shlex

import pytest

from model.artifact import load_artifact
from model.backtest import run_backtest
from model.datasets import mackey_glass, read_csv

ROOT = pathlib.Path(__file__).parents[3]
ARTIFACTS = ROOT / "model" / "artifacts"
TAXI = ROOT.parent / "shared" / "data" / "nab" / "nyc_taxi.csv"
PATHS = sorted(ARTIFACTS.glob("*/*/model.pt"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.parent.parent.name)
def test_it_is_small_and_says_how_it_was_made(path):
    """The file is under 2 MB, and its manifest has the command without a machine's path."""
    assert path.stat().st_size < 2_000_000
    manifest = load_artifact(path).manifest
    command = manifest.training["command"]
    assert command.startswith("python -m model train ")
    assert not [word for word in shlex.split(command) if word.startswith("/")]


def beats_both(figures):
    """Returns whether the model's mean error is below those of both baselines."""
    return figures["model"]["mae"] < min(figures["persistence"]["mae"], figures["seasonal_naive"]["mae"])


@pytest.mark.skipif(not TAXI.exists(), reason="needs ../shared/data/nab/nyc_taxi.csv")
def test_nyc_taxi_on_the_rows_after_its_training():
    """It beats both baselines, and its error is at most a plain LSTM's: .049, .118 and .139."""
    artifact = load_artifact(ARTIFACTS / "nyc-taxi" / "1" / "model.pt")
    backtest = run_backtest(artifact, read_csv(TAXI), from_row=8640, horizon=48)
    assert beats_both(backtest.figures_at(1))
    assert beats_both(backtest.figures_at(5))
    found = {horizon: backtest.figures_at(horizon)["model"]["altmape"] for horizon in (1, 5, 48)}
    assert found[1] <= 0.049
    assert found[5] <= 0.118
    assert found[48] <= 0.139


def test_mackey_glass_on_a_series_with_another_history():
    """It beats both baselines on a series whose history it was not trained on."""
    artifact = load_artifact(ARTIFACTS / "mackey-glass" / "1" / "model.pt")
    backtest = run_backtest(artifact, mackey_glass(2000, seed=77), from_row=1000, horizon=5)
    assert beats_both(backtest.figures_at(1))
    assert beats_both(backtest.figures_at(5))
