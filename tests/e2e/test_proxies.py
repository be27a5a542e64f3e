"""Proxy variables that name a dead port: no program of the project sends what is for this machine there."""

import os
import subprocess
import sys

import pytest

from tests.e2e.conftest import BOUND_SECONDS, ROOT

DEAD = "http://user:hunter2@127.0.0.1:1"  # port 1: nothing listens there
NAMES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
PROXIES = {spelt: DEAD for name in NAMES for spelt in (name, name.upper())}
ELSEWHERE = "192.0.2.1:50051"  # no machine has this address


@pytest.fixture
def front():
    """Returns one front: the variables are the clients'."""
    return "grpcio"


def run(*command):
    """Runs a program of the project among dead proxies, and returns how it ended."""
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**environment, **PROXIES},
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
    )


def test_no_program_takes_a_proxy_to_this_machine(start_server):
    """The health check of the container, the command, the load test, the benchmark, nor the server."""
    server = start_server(environment=PROXIES)
    serving = server.event("serving")
    listen, metrics = serving["listen"], serving["metrics"]
    load = ["--target", listen, "--model", "mackey-glass", "--streams", "2", "--seconds", "0.2"]
    for command in (
        ["deploy/healthcheck.py", listen],
        ["deploy/healthcheck.py", listen.replace("127.0.0.1", "localhost")],
        ["-m", "streamcell", "models", "--target", listen],
        ["-m", "loadtest", *load, "--warm-up", "0", "--metrics", metrics],
    ):
        ended = run(*command)
        assert ended.returncode == 0, (command, ended.stderr)
    answer = "x: 8 values; mackey-glass/1 takes 1"  # the benchmark's load is for another model
    assert answer in run("-m", "bench.raw", *load, "--warm-up", "0").stderr


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "streamcell", "models", "--target", ELSEWHERE],
        ["-m", "loadtest", "--target", ELSEWHERE, "--seconds", "0.2"],
    ],
)
def test_a_proxy_that_is_in_the_way_is_named(command):
    """With its variable, and without its password."""
    ended = run(*command)
    assert ended.returncode != 0
    assert "by way of the proxy 127.0.0.1:1, which the variable grpc_proxy names" in ended.stderr
    assert "hunter2" not in ended.stderr
