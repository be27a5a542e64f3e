"""What is seen of a server while it is attacked: its processes' memory and threads, and a canary's waits."""

import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys
import threading
import time

from tests.e2e.conftest import BOUND_SECONDS, ROOT, children

_LOOK_SECONDS = 0.02


def processes(pid):
    """Returns the process ids of a server: its own, and its children's."""
    return [pid, *children(pid)]


def status(pids, field):
    """Returns the sum of a number in the processes' status: kibibytes of memory, or threads."""
    found = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            text = pathlib.Path(f"/proc/{pid}/status").read_text()
            found += int(text.split(f"\n{field}:")[1].split()[0])
    return found


def mebibytes(pids):
    """Returns the processes' resident memory in MiB."""
    return status(pids, "VmRSS") / 1024


class Peak:
    """The highest memory and the most threads of processes within a `with` block."""

    def __init__(self, pids):
        self._pids = pids
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.mebibytes = 0.0
        self.threads = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ending.set()
        self._thread.join(BOUND_SECONDS)

    def _watch(self):
        while not self._ending.wait(_LOOK_SECONDS):
            self.mebibytes = max(self.mebibytes, mebibytes(self._pids))
            self.threads = max(self.threads, status(self._pids, "Threads"))


@dataclasses.dataclass
class Waits:
    """How long a canary waited for its answers, in seconds."""

    seconds: list[float]

    def quantile(self, share):
        """Returns the wait that a share of the answers did not exceed."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def worst(self):
        """The longest wait."""
        return max(self.seconds)


class CanaryProcess:
    """The canary's process, whose answers are collected as they come."""

    def __init__(self, address):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks.canary", address],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout.readline() == "ready\n"
        self._answers = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            self._answers.append(tuple(json.loads(line)))

    def waits(self, start, end):
        """Returns the waits that ended after one instant and began before another; every answer must be good.

        An answer that is on its way at the end is waited for.
        """
        last = time.monotonic() + BOUND_SECONDS
        while not self._answers or (self._answers[-1][0] < end and not self._answers[-1][2]):
            assert time.monotonic() < last, "the canary has no answer"
            time.sleep(_LOOK_SECONDS)
        answers = list(self._answers)
        assert not answers[-1][2], answers[-1]
        return Waits([seconds for at, seconds, _ in answers if at + seconds >= start and at < end])

    def close(self):
        """Ends the process."""
        self._process.stdin.close()
        try:
            self._process.wait(BOUND_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(BOUND_SECONDS)
        self._process.stdout.close()


@dataclasses.dataclass
class Seen:
    """What an attack did to a server."""

    idle: Waits
    during: Waits
    before_mebibytes: float
    peak_mebibytes: float
    after_mebibytes: float
    before_threads: int
    peak_threads: int
    attack_seconds: float
    cpu_seconds: float
    outcome: object  # what the attack returned

    @property
    def worst_ratio(self):
        """The longest wait during the attack, in idle p99s."""
        return self.during.worst / self.idle.quantile(0.99)

    @property
    def typical_ratio(self):
        """The p99 of the waits during the attack, in idle p99s."""
        return self.during.quantile(0.99) / self.idle.quantile(0.99)

    def row(self):
        """Returns the figures as a line of a table."""
        idle, during = 1e3 * self.idle.quantile(0.99), 1e3 * self.during.quantile(0.99)
        return (
            f"idle p99 {idle:.1f} ms | p99 {during:.1f} ms"
            f" | worst {1e3 * self.during.worst:.0f} ms | memory {self.before_mebibytes:.0f} "
            f"-> {self.peak_mebibytes:.0f} -> {self.after_mebibytes:.0f} MiB"
            f" | threads {self.before_threads} -> {self.peak_threads}"
            f" | attack {self.attack_seconds:.1f} s, cpu {self.cpu_seconds:.1f} s | {self.outcome}"
        )


def cpu_seconds(pids):
    """Returns the processor time that processes have taken."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / 100


def witness(pid, canary, attack, *, idle_seconds=1.0, after_seconds=1.0):
    """Attacks a server beside a canary and returns what was seen.

    Args:
        pid: the server's process.
        canary: its client's process.
        attack: called without arguments; what it returns is the outcome.
    """
    pids = processes(pid)
    began = time.monotonic()
    time.sleep(idle_seconds)
    before, threads, cpu = mebibytes(pids), status(pids, "Threads"), cpu_seconds(pids)
    start = time.monotonic()
    idle = canary.waits(began, start)
    with Peak(pids) as peak:
        start = time.monotonic()
        outcome = attack()
        end = time.monotonic()
        time.sleep(after_seconds)
        during = canary.waits(start, time.monotonic())
    after = mebibytes(pids)
    return Seen(
        idle=idle,
        during=during,
        before_mebibytes=before,
        peak_mebibytes=max(peak.mebibytes, after),
        after_mebibytes=after,
        before_threads=threads,
        peak_threads=peak.threads,
        attack_seconds=end - start,
        cpu_seconds=cpu_seconds(pids) - cpu,
        outcome=outcome,
    )
