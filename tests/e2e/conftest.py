"""Real processes: the server as a person or a container starts it."""

import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

ROOT = pathlib.Path(__file__).parents[2]
BOUND_SECONDS = 120.0  # for what never takes long, on a busy machine either: a hang fails here
_PAUSE_SECONDS = 0.01  # between two looks at a process


class ServerProcess:
    """`python -m service` with its log; on free ports unless the flags name others."""

    def __init__(self, *flags, environment=None):
        free = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service", *free, *flags],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.lines = []
        self._queue = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def next_line(self):
        """Returns the next line of the log, None at its end."""
        line = self._queue.get(timeout=BOUND_SECONDS)
        if line is not None:
            self.lines.append(line)
        return line

    def event(self, name):
        """Waits for an event in the log and returns it."""
        while (line := self.next_line()) is not None:
            if line.startswith("{") and json.loads(line)["event"] == name:
                return json.loads(line)
        raise AssertionError(f"the server ended before {name}: {self.lines}")

    def signal(self, number=signal.SIGTERM):
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self):
        """Returns the exit status, once the process has ended; `lines` then has the whole log."""
        while self.next_line() is not None:
            pass
        return self.process.wait(BOUND_SECONDS)

    def close(self):
        """Ends the process in whatever state it is."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(BOUND_SECONDS)
        self._reader.join(BOUND_SECONDS)
        self.process.stderr.close()
        self.process.stdout.close()


def samples(metrics, name):
    """Returns a metric's samples on the page at an address, as pairs of labels and value."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=BOUND_SECONDS) as response:
        families = text_string_to_metric_families(response.read().decode())
    return [(each.labels, each.value) for family in families for each in family.samples if each.name == name]


def children(pid):
    """Returns the process ids of a process's children."""
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def until_gone(pid):
    """Waits until a process has ended."""
    end = time.monotonic() + BOUND_SECONDS
    while is_running(pid):
        assert time.monotonic() < end, "a process was left behind"
        time.sleep(_PAUSE_SECONDS)


def until_stopped(pid):
    """Waits until every thread of a process stands still after SIGSTOP."""
    end = time.monotonic() + BOUND_SECONDS
    while {_state(stat) for stat in pathlib.Path(f"/proc/{pid}/task").glob("*/stat")} != {"T"}:
        assert time.monotonic() < end, "a process was not stopped"
        time.sleep(_PAUSE_SECONDS)


def is_running(pid):
    """Returns whether there is a process, and it has not ended."""
    return _state(pathlib.Path(f"/proc/{pid}/stat")) not in ("Z", "")


def _state(stat):
    """Returns the letter of a process's or a thread's state; "" if it is gone."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # it may go while it is looked at
        return ""


@pytest.fixture(params=["grpcio", "envoy"])
def front(request):
    """Returns the front: each test that starts a server runs on every one."""
    return request.param


@pytest.fixture
def start_server(front):
    """Starts server processes, and ends them after the test."""
    running = []

    def start(*flags, **options):
        running.append(ServerProcess("--front", front, *flags, **options))
        return running[-1]

    yield start
    for server in running:
        server.close()
