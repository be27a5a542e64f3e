"""Settings at the system and at MKL: the allocator, the threads' scheduling, matrix products."""

import ctypes
import os
import subprocess
import sys

import pytest

from service.processes import tuning

# The policy must not hold for the process that runs the tests.
SCHEDULE_AND_CHECK = """
import os, subprocess, sys, threading
from service.processes import tuning
assert tuning.schedule_in_batches()
found = []
thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
thread.start()
thread.join()
child = [sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"]
found.append(int(subprocess.run(child, capture_output=True, check=True).stdout))
assert found == [os.SCHED_BATCH] * 2, found
"""


class Libc:
    """A C library that accepts, or refuses, every option, and records the options."""

    def __init__(self, answer):
        self.options = []
        self.mallopt = lambda *option: self.options.append(option) or answer


class TestFreedMemory:
    """The allocator's thresholds."""

    def test_keeps_freed_memory_where_the_library_can(self, monkeypatch):
        """Both of glibc's thresholds are raised; the largest block is the most that glibc takes."""
        libc = Libc(1)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
        assert tuning.keep_freed_memory()
        assert libc.options == [(-3, 32 << 20), (-1, 256 << 20)]

    def test_changes_nothing_elsewhere(self, monkeypatch):
        """A library without mallopt, or one that refuses, is no error."""
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
        assert not tuning.keep_freed_memory()
        monkeypatch.setattr(ctypes, "CDLL", lambda name: Libc(0))
        assert not tuning.keep_freed_memory()


class TestScheduling:
    """The threads' scheduling policy."""

    @pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no SCHED_BATCH")
    def test_threads_begun_later_are_scheduled_in_batches(self):
        """So are processes begun later, for example Envoy."""
        subprocess.run([sys.executable, "-c", SCHEDULE_AND_CHECK], check=True, timeout=60)

    def test_a_system_that_refuses_is_no_error(self, monkeypatch):
        """In a sandbox, or on another system, nothing changes."""

        def refuse(*_):
            raise PermissionError

        monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
        assert not tuning.schedule_in_batches()
        monkeypatch.delattr(os, "sched_setscheduler")
        assert not tuning.schedule_in_batches()


class TestReproducibleProducts:
    """Products whose bits do not depend on how many rows are multiplied together."""

    @pytest.mark.parametrize(
        ("vendor", "flags", "asked"),
        [
            ("GenuineIntel", "fpu avx2 avx512f amx_tile", {"MKL_CBWR": "AVX512,STRICT"}),
            ("GenuineIntel", "fpu avx2", {"MKL_CBWR": "AVX2,STRICT"}),
            ("GenuineIntel", "fpu avx", {}),
            ("AuthenticAMD", "fpu avx2 avx512f", {}),
        ],
    )
    def test_asks_for_the_widest_strict_mode(self, tmp_path, vendor, flags, asked):
        """Only on Intel's processors, as MKL has no strict mode for others."""
        info = tmp_path / "cpuinfo"
        info.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\nbugs\t: none\n")
        environment = {}
        tuning.make_products_reproducible(environment, info)
        assert environment == asked

    def test_a_value_that_is_set_stays(self, tmp_path):
        """A person who sets the variable has a reason."""
        info = tmp_path / "cpuinfo"
        info.write_text("vendor_id : GenuineIntel\nflags : avx512f\n")
        environment = {"MKL_CBWR": "COMPATIBLE"}
        tuning.make_products_reproducible(environment, info)
        assert environment == {"MKL_CBWR": "COMPATIBLE"}

    def test_a_system_without_the_file_changes_nothing(self, tmp_path):
        """Not every system has /proc/cpuinfo."""
        environment = {}
        tuning.make_products_reproducible(environment, tmp_path / "none")
        assert environment == {}


RAISE_AND_CHECK = """
import resource
from service.processes import tuning
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, min(300, most)))
assert tuning.allow_open_files(50)
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 100
assert tuning.allow_open_files(200)
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 200
assert not tuning.allow_open_files(301)
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
"""


def test_the_bound_on_open_files_rises_as_far_as_the_system_allows():
    """A bound that is high enough stays; the answer says whether it is."""
    subprocess.run([sys.executable, "-c", RAISE_AND_CHECK], check=True, timeout=60)
