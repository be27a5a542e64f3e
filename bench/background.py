"""A load that is under way for as long as a block lasts, while another one is measured beside it.

It is a process of a load test's crowd, which begins when it is told and ends with its standard input. Does
not know what the load is for.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bench import machine
from bench.errors import BenchError
from bench.processes import ROOT, STOP_SECONDS
from loadtest.options import Options

_Process = subprocess.Popen[str]


@contextlib.contextmanager
def loading(options: Options, cores: Sequence[int]) -> Iterator[None]:
    """Runs a load from the block's begin to its end.

    Raises:
        BenchError: it could not begin, ended before the block did, or met an error.
    """
    with machine.pinned(cores):
        process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.process"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,  # an interrupt at the terminal comes through this process
        )  # fmt: skip
    try:
        _tell(process, dataclasses.asdict(options))
        _hear(process)  # that it is ready
        _tell(process, {"start_ns": time.monotonic_ns()})
        yield
        if process.poll() is not None:
            raise BenchError("the load beside the measured one ended before it")
        if process.stdin is not None:
            process.stdin.close()  # which ends it
        errors = _hear(process)["tally"]["errors"]
        if errors:
            raise BenchError(f"the load beside the measured one failed: {errors}")
    finally:
        _end(process)


def _tell(process: _Process, message: dict[str, Any]) -> None:
    if process.stdin is not None:
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()


def _hear(process: _Process) -> dict[str, Any]:
    line = process.stdout.readline() if process.stdout is not None else ""
    message: dict[str, Any] = json.loads(line) if line else {"error": "it ended without a word"}
    if "error" in message:
        raise BenchError(f"the load beside the measured one: {message['error']}")
    return message


def _end(process: _Process) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    try:
        process.wait(STOP_SECONDS)  # it closes its sessions when its standard input ends
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
