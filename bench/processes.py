"""The processes of a benchmark: servers and generators, on separate cores where there are two.

Owns their start, their end and what they print. Does not know what is measured.
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
from loadtest.server_side import process_tree

ROOT = pathlib.Path(__file__).parents[1]
STOP_SECONDS = 30.0
_MAX_GENERATORS = 4  # more than one server can keep busy


class Cores:
    """The server's core and the generators' cores; none of them is set where there is only one core."""

    def __init__(self, found: Sequence[int]) -> None:
        self.server = found[:1] if len(found) > 1 else ()
        self.generators = found[1:]

    @property
    def num_generators(self) -> int:
        """The number of generator processes that have a core each, at most 4; 1 where no core is set."""
        return min(max(1, len(self.generators)), _MAX_GENERATORS)

    def __str__(self) -> str:
        if not self.server:
            return "not pinned: fewer than two cores"
        if len(self.generators) == 1:
            return f"server on core {self.server[0]}, generator on core {self.generators[0]}"
        first, last = self.generators[0], self.generators[-1]
        return f"server on core {self.server[0]}, generators on cores {first} to {last}"


class Server:
    """A server process that has said where it listens. `metrics`: the address of its metrics page, or ""."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._last_lines: collections.deque[str] = collections.deque(maxlen=20)
        self.pid = process.pid
        self.listen, self.metrics = self._wait_until_serving()
        self._pids = _processes_of(self.pid)
        threading.Thread(target=self._read_lines, daemon=True).start()

    def _wait_until_serving(self) -> tuple[str, str]:
        for line in self._process.stderr or ():
            self._last_lines.append(line.rstrip())
            if '"event": "serving"' in line:
                found: dict[str, str] = json.loads(line)
                return found["listen"], found.get("metrics", "")
        last = self._last_lines[-1] if self._last_lines else "it wrote nothing"
        raise BenchError(f"a server did not start: {last}")

    def _read_lines(self) -> None:
        if self._process.stderr is not None:
            with self._process.stderr as lines:
                for line in lines:  # otherwise the server would block on a full pipe
                    self._last_lines.append(line.rstrip())

    def reset_peak_memory(self) -> None:
        """Resets `peak_memory_bytes`, if the system allows it."""
        for pid in self._pids:
            with contextlib.suppress(OSError):
                pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_memory_bytes(self) -> int | None:
        """Returns the peak memory, summed over the server's processes; None if the system does not say."""
        try:
            return sum(map(_peak_memory_bytes, self._pids)) or None
        except OSError:
            return None


def _processes_of(pid: int) -> tuple[int, ...]:
    """Returns the processes of a server; none if the system does not say."""
    try:
        return process_tree(pid)
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
        BenchError: the server does not start.
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
        BenchError: its exit status is none of `statuses`.
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
        BenchError: its exit status is none of `statuses`.
    """
    found: dict[str, Any] = json.loads(output_of(module, *arguments, cores=cores, statuses=statuses))
    return found
