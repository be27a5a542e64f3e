"""The processes of a benchmark: servers and generators, each on a core of its own where there are two.

Owns their life and what they print. Does not know what is measured.
"""

import collections
import contextlib
import json
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from bench import machine
from bench.errors import BenchError

ROOT = pathlib.Path(__file__).parents[1]
_STOP_SECONDS = 30.0


class Cores:
    """Which core serves and which one generates; both None where there is only one."""

    def __init__(self) -> None:
        found = machine.cores()
        self.server: int | None = found[0] if len(found) > 1 else None
        self.generator: int | None = found[-1] if len(found) > 1 else None

    def __str__(self) -> str:
        if self.server is None:
            return "not pinned: fewer than two cores"
        return f"server on core {self.server}, generator on core {self.generator}"


class Server:
    """A server process that said where it listens."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._said: collections.deque[str] = collections.deque(maxlen=20)
        self.pid = process.pid
        self.listen = self._wait_until_serving()
        threading.Thread(target=self._read_on, daemon=True).start()

    def _wait_until_serving(self) -> str:
        for line in self._process.stderr or ():
            self._said.append(line.rstrip())
            if '"event": "serving"' in line:
                listen: str = json.loads(line)["listen"]
                return listen
        last = self._said[-1] if self._said else "it said nothing"
        raise BenchError(f"a server did not start: {last}")

    def _read_on(self) -> None:
        for line in self._process.stderr or ():  # else it would block on a full pipe
            self._said.append(line.rstrip())

    def forget_peak_memory(self) -> None:
        """Makes `peak_memory_bytes` begin anew, where the system can."""
        with contextlib.suppress(OSError):
            pathlib.Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def peak_memory_bytes(self) -> int | None:
        """Returns the most memory it had; None where the system cannot tell."""
        try:
            status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return None
        lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024


@contextlib.contextmanager
def running(module: str, *arguments: str, core: int | None) -> Iterator[Server]:
    """Runs a server for as long as the block lasts.

    Raises:
        BenchError: it does not start.
    """
    with machine.pinned(core):
        process = subprocess.Popen(  # noqa: S603 (this project's own modules)
            [sys.executable, "-m", module, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
    try:
        yield Server(process)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def output_of(module: str, *arguments: str, core: int | None = None) -> str:
    """Runs a module to its end and returns what it printed.

    Raises:
        BenchError: it failed.
    """
    with machine.pinned(core):
        process = subprocess.Popen(  # noqa: S603 (this project's own modules)
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    try:
        printed, complaints = process.communicate()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.returncode:
        last = (complaints.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise BenchError(f"python -m {module}: {last}")
    return printed


def json_of(module: str, *arguments: str, core: int | None = None) -> dict[str, Any]:
    """Runs a module and returns the JSON object that it printed.

    Raises:
        BenchError: it failed.
    """
    found: dict[str, Any] = json.loads(output_of(module, *arguments, core=core))
    return found
