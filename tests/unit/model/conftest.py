"""Small series and networks that the tests of model/ share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model.__main__ import main
from model.artifact import save_artifact
from model.datasets import Series
from model.export import reference

HOUR_NS = 3600 * 10**9
TINY = [
    *("--hidden", "16", "--head-steps", "4", "--horizons", "1,4", "--max-epochs", "3", "--num-streams", "4"),
    *("--window-steps", "12", "--burn-in-steps", "6", "--quiet"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Runs small networks on one thread, and restores the number afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny() -> list[str]:
    """Returns options of `train` that make it take a second."""
    return TINY


def wave(num_rows: int, seed: int = 0) -> Series:
    """Returns an hourly series with a daily wave and noise."""
    rows = np.arange(num_rows)
    noise = np.random.default_rng(seed).normal(0, 0.1, num_rows)
    values = (50 + 10 * (np.sin(2 * np.pi * rows / 24) + noise)).astype(np.float32)[:, None]
    return Series(("value",), rows.astype(np.int64) * HOUR_NS, values, HOUR_NS, calendar=True)


def write_csv(series: Series, path: Path) -> Path:
    """Writes a series as a CSV file with dates."""
    dates = series.times_ns.astype("datetime64[ns]").astype("datetime64[s]")
    lines = [
        ",".join([str(date), *map(repr, map(float, row))])
        for date, row in zip(dates, series.values, strict=True)
    ]
    path.write_text("\n".join([",".join(["timestamp", *series.names]), *lines]) + "\n")
    return path


@pytest.fixture
def wave_of() -> Callable[..., Series]:
    """Returns the function that makes an hourly series with a daily wave and noise."""
    return wave


@pytest.fixture
def csv_writer() -> Callable[[Series, Path], Path]:
    """Returns the function that writes a series as a CSV file with dates."""
    return write_csv


@pytest.fixture
def tiny_csv(tmp_path) -> Path:
    """Writes a CSV file of 300 hourly rows, and returns its path."""
    return write_csv(wave(300), tmp_path / "tiny.csv")


@pytest.fixture
def command(capsys) -> Callable[..., tuple[int, str, str]]:
    """Returns a function that runs a command in this process: status, standard output and error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def refused(command) -> Callable[..., str]:
    """Returns a function that runs a command which must fail: status 2 and one line, which it returns."""

    def run(*arguments: object) -> str:
        status, out, err = command(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return run


@pytest.fixture
def artifact_path(tmp_path) -> Path:
    """Writes a small reference artifact, and returns its path."""
    network, manifest = reference(num_inputs=3, hidden_size=16, num_layers=2, seed=5)
    save_artifact(network, manifest, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def trained(command, tiny, tiny_csv, tmp_path):
    """Trains an artifact on the first 200 rows of the tiny file, and returns its path."""
    status, _, err = command(
        "train", "--csv", tiny_csv, "--rows", "0:200", "--out", tmp_path / "out", "--name", "tiny", *tiny
    )
    assert status == 0, err
    return tmp_path / "out" / "tiny" / "1" / "model.pt"
