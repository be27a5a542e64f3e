"""The README's commands and code, run as they are written, in a folder that looks like a checkout."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.e2e.conftest import BOUND_SECONDS, ROOT

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
# Not run here: test_demo runs the demo, the fixture below serves, and containers need an engine.
NOT_RUN_HERE = {"make demo", "make serve", "docker compose up --build"}
GRPC_CLIENTS = r"streamcell (models|predict)|-m loadtest"


def test_every_command_is_known():
    """The README has blocks of two kinds, and the commands that are not run here are in it."""
    assert {kind for kind, _ in BLOCKS} <= {"sh", "python"}
    assert set(COMMANDS) >= NOT_RUN_HERE
    assert len(TEXT.splitlines()) <= 150


@pytest.fixture
def checkout(tmp_path):
    """Returns a folder with all files of the checkout, and a half-hourly series as taxi.csv."""
    for path in ROOT.iterdir():
        if path.name not in (".git", "trained", "taxi.csv", "tokens.txt"):
            (tmp_path / path.name).symlink_to(path)
    if not (tmp_path / ".venv").exists():  # the interpreter that runs the tests takes its place
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        for name in ("python", "streamcell"):
            (tmp_path / ".venv" / "bin" / name).symlink_to(
                os.path.join(os.path.dirname(sys.executable), name)
            )
    lines = [f"{_time(row)},{10_000 + 4_000 * (row % 48 > 15) + 37 * (row % 7)}" for row in range(2000)]
    (tmp_path / "taxi.csv").write_text("timestamp,value\n" + "\n".join(lines) + "\n")
    return tmp_path


def _time(row):
    day, half_hour = divmod(row, 48)
    return f"2014-{7 + day // 28:02}-{1 + day % 28:02} {half_hour // 2:02}:{30 * (half_hour % 2):02}:00"


@pytest.fixture
def served(start_server):
    """Returns the address of a server with the shipped models."""
    return start_server().event("serving")["listen"]


def _run(command, folder):
    if command.startswith("curl ") and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        command,
        cwd=folder,
        shell=True,
        capture_output=True,
        text=True,
        timeout=2 * BOUND_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_client_in_ten_lines_runs(checkout, served):
    """The code prints a prediction per step, and a forecast."""
    code = next(block for kind, block in BLOCKS if kind == "python").replace("localhost:50051", served)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 11


def test_the_shell_commands_run(checkout, served, front):
    """Each command succeeds, in the README's order, on files of earlier commands.

    Commands that talk to no server are run once, beside the envoy front; curl, too, is for that front.
    """
    for command in COMMANDS:
        if command in NOT_RUN_HERE or (front != "envoy" and not re.search(GRPC_CLIENTS, command)):
            continue
        command = command.replace("--target localhost:50051", "")
        command = command.replace("localhost:50051/", f"{served}/").replace("curl ", "curl -sSf ")
        if re.search(GRPC_CLIENTS, command):
            command = re.sub(r"(streamcell \w+|-m loadtest)", rf"\1 --target {served}", command)
        _run(command, checkout)
    predicted = (checkout / "predicted.csv").read_text().splitlines()
    assert predicted[0] == "time,step_index,value,predicted_value"
    assert len(predicted) == 1 + 2000 + 48
    assert front != "envoy" or (checkout / "trained" / "my-series" / "1" / "report.md").exists()
