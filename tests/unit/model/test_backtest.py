"""The backtest along a series; `test_evaluate.py` holds its figures to a loop written by hand."""

import numpy as np

from model.artifact import load_artifact
from model.backtest import run_backtest


def test_forecasts_use_no_later_row(trained, wave_of):
    """Other values from row 250 on change no forecast made before row 250."""
    artifact, series = load_artifact(trained), wave_of(300)
    before = run_backtest(artifact, series, from_row=200, horizon=4)
    spoilt = wave_of(300)
    spoilt.values[250:] = 1e6
    after = run_backtest(artifact, spoilt, from_row=200, horizon=4)
    made_before = before.origins < 250
    assert np.array_equal(before.predicted[made_before], after.predicted[made_before])
    assert not np.array_equal(before.predicted[~made_before], after.predicted[~made_before])
    assert before.period == after.period
