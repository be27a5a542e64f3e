"""This process at the system and at MKL: memory, threads, open files, products. Serves no calls."""

import contextlib
import ctypes
import os
import pathlib
import resource
from collections.abc import MutableMapping

_M_TRIM_THRESHOLD = -1  # as in glibc's malloc.h
_M_MMAP_THRESHOLD = -3
_LARGEST_HEAP_BLOCK_BYTES = 32 << 20  # the most that glibc takes for M_MMAP_THRESHOLD
_RETAINED_BYTES = 256 << 20
_CPU_INFO = pathlib.Path("/proc/cpuinfo")
# Intel's instruction sets for which MKL offers strict reproducibility, the widest first.
_STRICT_MODES = (("avx512f", "AVX512,STRICT"), ("avx2", "AVX2,STRICT"))


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory instead of returning it to the system; returns whether it could.

    By default glibc returns blocks above 128 KiB to the system and asks for them again, and the system clears
    every page. The intermediate tensors of a batch of 256 then cost more than the batch itself. Without glibc
    nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    is_set = mallopt(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK_BYTES)
    return bool(is_set and mallopt(_M_TRIM_THRESHOLD, _RETAINED_BYTES))


def schedule_in_batches() -> bool:
    """Makes a thread that wakes up wait for the end of the running thread's turn; returns whether it could.

    The policy is SCHED_BATCH. A server library passes every message from its own thread to Python's and back.
    By default each pass preempts the running thread, so each answer of a batch costs a change of threads. The
    policy holds for threads and processes that begin afterwards. Without Linux nothing changes.
    """
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        return True
    return False


def allow_open_files(num_files: int) -> bool:
    """Raises this process's bound on open files, if it is lower; returns whether so many may be open now.

    Each connection is an open file. Many systems start programs with a bound of 1,024, which a program may
    raise for itself. Processes started later inherit it.
    """
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_unlimited = most == resource.RLIM_INFINITY
    wanted = num_files if is_unlimited else min(num_files, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return is_unlimited or most >= num_files


def make_products_reproducible(
    environment: MutableMapping[str, str], cpu_info: pathlib.Path = _CPU_INFO
) -> None:
    """Asks MKL for matrix products whose bits do not depend on how many rows are multiplied together.

    By default, on Intel's processors with AVX-512, MKL sums products of few rows in another order than
    products of many rows, so a prediction's last bits would depend on the batch (docs/adr/0010). MKL reads
    the variable at its first product, so this must run before torch is imported. Processes started later
    inherit the variable. A value that is already set stays. MKL has no strict mode for other makers'
    processors; there the padding of the artifact's rows is enough.
    """
    try:
        text = cpu_info.read_text()
    except OSError:
        return
    if "GenuineIntel" not in text:
        return
    flags = set(text.partition("\nflags")[2].partition("\n")[0].split())
    mode = next((mode for flag, mode in _STRICT_MODES if flag in flags), None)
    if mode is not None:
        environment.setdefault("MKL_CBWR", mode)
