"""A load in the background, while another one is measured.

It is a generator process of loadtest: it begins at a message, and ends when its standard input ends.
Does not know what the load is for.
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
    """Runs a load for as long as the block lasts.

    Raises:
        BenchError: the load could not begin, ended before the block, or had errors.
    """
    with machine.pinned(cores):
        process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.process"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,  # an interrupt at the terminal reaches it through this process only
        )  # fmt: skip
    try:
        _send(process, dataclasses.asdict(options))
        _receive(process)  # "ready"
        _send(process, {"start_ns": time.monotonic_ns()})
        yield
        if process.poll() is not None:
            raise BenchError("the load in the background ended before the measured one")
        if process.stdin is not None:
            process.stdin.close()  # this ends the load
        errors = _receive(process)["tally"]["errors"]
        if errors:
            raise BenchError(f"the load in the background failed: {errors}")
    finally:
        _end(process)


def _send(process: _Process, message: dict[str, Any]) -> None:
    if process.stdin is not None:
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()


def _receive(process: _Process) -> dict[str, Any]:
    line = process.stdout.readline() if process.stdout is not None else ""
    message: dict[str, Any] = json.loads(line) if line else {"error": "its process ended early"}
    if "error" in message:
        raise BenchError(f"the load in the background: {message['error']}")
    return message


def _end(process: _Process) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    try:
        process.wait(STOP_SECONDS)  # the process closes its sessions first
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
