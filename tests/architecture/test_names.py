"""Tests are named alike in every process: pytest-xdist refuses to start where they are not."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_tests_are_named_alike_at_another_time_and_seed(request):
    """No parameter is taken from a clock, a random number or the order of a set."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    collect = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", "-m", ""]
    env = os.environ | {"PYTHONHASHSEED": seed}
    found = subprocess.run(collect, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert {item.nodeid for item in request.session.items} <= set(found.stdout.splitlines())
