"""The processes of a benchmark: servers and generators, on cores of their own where there are two.

Owns their life and what they print. Does not know what is measured.
"""

import collections
import contextlib
import json
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from bench import machine
from bench.errors import BenchError
from loadtest.errors import LoadtestError
from loadtest.server_side import family

ROOT = pathlib.Path(__file__).parents[1]
STOP_SECONDS = 30.0
_MAX_GENERATORS = 4  # more than one server can keep busy


class Cores:
    """Which core serves and which ones generate; no core of either is named where there is only one."""

    def __init__(self, found: Sequence[int]) -> None:
        self.server = found[:1] if len(found) > 1 else ()
        self.generators = found[1:]

    @property
    def num_generators(self) -> int:
        """Generator processes that have a core each."""
        return min(max(1, len(self.generators)), _MAX_GENERATORS)

    def __str__(self) -> str:
        if not self.server:
            return "not pinned: fewer than two cores"
        if len(self.generators) == 1:
            return f"server on core {self.server[0]}, generator on core {self.generators[0]}"
        first, last = self.generators[0], self.generators[-1]
        return f"server on core {self.server[0]}, generators on cores {first} to {last}"


class Server:
    """A server process that said where it listens; `metrics` where it has some."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._said: collections.deque[str] = collections.deque(maxlen=20)
        self.pid = process.pid
        self.listen, self.metrics = self._wait_until_serving()
        self._pids = _family(self.pid)
        threading.Thread(target=self._read_on, daemon=True).start()

    def _wait_until_serving(self) -> tuple[str, str]:
        for line in self._process.stderr or ():
            self._said.append(line.rstrip())
            if '"event": "serving"' in line:
                found: dict[str, str] = json.loads(line)
                return found["listen"], found.get("metrics", "")
        last = self._said[-1] if self._said else "it said nothing"
        raise BenchError(f"a server did not start: {last}")

    def _read_on(self) -> None:
        if self._process.stderr is not None:
            with self._process.stderr as lines:
                for line in lines:  # else it would block on a full pipe
                    self._said.append(line.rstrip())

    def forget_peak_memory(self) -> None:
        """Makes `peak_memory_bytes` begin anew, where the system can."""
        for pid in self._pids:
            with contextlib.suppress(OSError):
                pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_memory_bytes(self) -> int | None:
        """Returns the most memory it had, the sum over its processes; None where the system cannot tell."""
        try:
            return sum(map(_peak_memory_bytes, self._pids)) or None
        except OSError:
            return None


def _family(pid: int) -> tuple[int, ...]:
    """Returns a server's processes; none where the system cannot tell."""
    try:
        return family(pid)
    except LoadtestError:
        return ()


def _peak_memory_bytes(pid: int) -> int:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024


@contextlib.contextmanager
def running(module: str, *arguments: str, cores: Sequence[int]) -> Iterator[Server]:
    """Runs a server for as long as the block lasts.

    Raises:
        BenchError: it does not start.
    """
    with machine.pinned(cores):
        process = subprocess.Popen(  # noqa: S603 (this project's own modules)
            [sys.executable, "-m", module, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
    try:
        yield Server(process)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def output_of(module: str, *arguments: str, cores: Sequence[int] = (), statuses: Sequence[int] = (0,)) -> str:
    """Runs a module to its end and returns what it printed.

    Raises:
        BenchError: it failed: its exit status is none of `statuses`.
    """
    with machine.pinned(cores):
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
    if process.returncode not in statuses:
        last = (complaints.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise BenchError(f"python -m {module}: {last}")
    return printed


def json_of(
    module: str, *arguments: str, cores: Sequence[int] = (), statuses: Sequence[int] = (0,)
) -> dict[str, Any]:
    """Runs a module and returns the JSON object that it printed.

    Raises:
        BenchError: it failed.
    """
    found: dict[str, Any] = json.loads(output_of(module, *arguments, cores=cores, statuses=statuses))
    return found
