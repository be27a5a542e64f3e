"""`make demo`, as a new user runs it."""

import os
import re
import subprocess
import time

import pytest

from tests.e2e.conftest import BOUND_SECONDS, ROOT

TAXI = ROOT.parent / "shared" / "data" / "nab" / "nyc_taxi.csv"


def make_demo(*arguments):
    """Runs the demo, checks that it left no process behind, and returns its result."""
    marker = f"streamcell-demo-{os.getpid()}-{time.monotonic_ns()}"
    environment = {**os.environ, "STREAMCELL_TEST_MARKER": marker}
    done = subprocess.run(
        ["make", "demo", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3 * BOUND_SECONDS,
        check=False,
    )
    left = []
    for process in os.listdir("/proc"):
        if process.isdecimal():
            try:
                with open(f"/proc/{process}/environ", "rb") as variables:
                    left += [process] if marker.encode() in variables.read() else []
            except OSError:
                continue  # the process has ended since
    assert not left
    return done


def errors_of(output):
    """Returns the mean absolute errors of model and persistence from the demo's summary."""
    found = re.search(r"^MAE +([\d.,]+) +([\d.,]+)$", output, re.MULTILINE)
    assert found, output
    return tuple(float(number.replace(",", "")) for number in found.groups())


def test_the_demo_streams_the_generated_series():
    """Without a file the shipped model beats persistence, and the output shows the server's latency."""
    done = make_demo()
    assert done.returncode == 0, done.stderr
    model, persistence = errors_of(done.stdout)
    assert model < persistence
    assert re.search(r"p50\s+[\d.]+ ms", done.stdout)
    assert re.search(r"p99\s+[\d.]+ ms", done.stdout)


@pytest.mark.skipif(not TAXI.exists(), reason="needs ../shared/data/nab/nyc_taxi.csv")
def test_the_demo_streams_the_taxi_series():
    """All half-hours of the real file are streamed, and the model beats persistence."""
    done = make_demo(f"CSV={TAXI}")
    assert done.returncode == 0, done.stderr
    assert "10,320" in done.stdout
    model, persistence = errors_of(done.stdout)
    assert model < persistence


def test_a_file_that_is_not_a_series_is_one_line(tmp_path):
    """The error names the line of a bad number."""
    path = tmp_path / "bad.csv"
    path.write_text(
        "timestamp,value\n2020-01-01 00:00:00,1\n2020-01-01 00:30:00,two\n2020-01-01 01:00:00,3\n"
    )
    done = make_demo(f"CSV={path}")
    assert done.returncode != 0
    assert "line 3" in done.stderr
    assert "Traceback" not in done.stderr
