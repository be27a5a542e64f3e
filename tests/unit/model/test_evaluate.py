"""The evaluate command: its figures, and what it refuses."""

import json

import numpy as np
import pytest
import torch

from model.artifact import load_artifact
from model.baselines import figures
from model.linear_forecasts import online, ridge


@torch.no_grad()
def by_hand(artifact, series, horizon):
    """Returns the forecasts [row][h] made after each row, by stepping the artifact row by row."""
    x, time = torch.from_numpy(series.values), torch.from_numpy(series.times_ns)
    state, ahead = artifact.zero_state(1), {}
    for row in range(len(series) - 1):
        now = time[row : row + 1]
        _, state = artifact.script.step(x[row : row + 1], now, state)
        forecast = artifact.script.forecast(state, now, horizon, torch.zeros(1, horizon, 0))
        ahead[row] = forecast[0, :, 0].numpy()
    return ahead


def test_the_figures_are_those_of_forecasts_made_by_hand(command, trained, tiny_csv, wave_of, tmp_path):
    """MAE, RMSE and altMAPE per horizon equal those of a loop that steps the artifact row by row."""
    status, table, _ = command(
        "evaluate",
        "--artifact",
        trained,
        "--csv",
        tiny_csv,
        "--horizons",
        "1,4",
        "--from-row",
        200,
        "--json",
        tmp_path / "f.json",
    )
    assert status == 0
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["rows"] == 100
    series = wave_of(300)
    ahead = by_hand(load_artifact(trained), series, 4)
    for horizon in (1, 4):
        actual = series.values[200:, 0].astype(np.float64)
        rivals = {
            "model": np.array([ahead[row - horizon][horizon - 1] for row in range(200, 300)]),
            "persistence": series.values[200 - horizon : 300 - horizon, 0],
            "seasonal_naive": series.values[200 - 24 : 300 - 24, 0],
        }
        for name, predicted in rivals.items():
            error = predicted - actual
            figures = found["horizons"][str(horizon)][name]
            assert figures["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
            assert figures["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
            assert figures["altmape"] == pytest.approx(np.abs(error).mean() / np.abs(actual).mean(), rel=1e-5)
    names = [line[9:31].strip() for line in table.splitlines()[3:]]
    assert names == 2 * ["model", "persistence", "seasonal naive", "ridge", "online least squares"]


def test_the_linear_forecasts_are_those_of_the_rows_before(command, trained, tiny_csv, wave_of, tmp_path):
    """Fitted to rows 0 to 199, and at each horizon compared with the same rows as the model."""
    options = ["--horizons", "1,4", "--from-row", 200, "--json", tmp_path / "f.json"]
    assert command("evaluate", "--artifact", trained, "--csv", tiny_csv, *options)[0] == 0
    found = json.loads((tmp_path / "f.json").read_text())["horizons"]
    values, targets = wave_of(300).values[:, :1], np.arange(200, 300)
    origins, options = np.arange(196, 299), {"num_fitted": 200, "period": 24}
    for horizon in (1, 4):
        made = ridge(values, origins, horizon=4, **options)[targets - horizon - 196, horizon - 1]
        assert found[str(horizon)]["ridge"] == figures(made, values[targets])
        made = online(values, targets, horizon=horizon, **options)
        assert found[str(horizon)]["online_least_squares"] == figures(made, values[targets])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--from-row", 0], "row 0"),
        (["--from-row", 300], "row 300"),
        (["--horizons", "0"], "horizon"),
        (["--horizons", "x"], "horizon"),
        (["--horizons", "240", "--from-row", 200], "horizon 240"),
        (["--csv", "missing.csv"], "missing.csv"),
        (["--artifact", "missing.pt"], "missing.pt"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(refused, trained, tiny_csv, options, said):
    """Rows and horizons outside the series and missing files are named in one line."""
    assert said in refused("evaluate", "--artifact", trained, "--csv", tiny_csv, *options)


def test_a_file_with_other_columns_is_refused(refused, trained, tmp_path):
    """A file without a column of the artifact's is refused, and the message names the column."""
    path = tmp_path / "other.csv"
    path.write_text(
        "timestamp,speed\n" + "".join(f"2020-01-01 {hour:02}:00:00,{hour}\n" for hour in range(24))
    )
    assert "value" in refused("evaluate", "--artifact", trained, "--csv", path, "--from-row", 12)
