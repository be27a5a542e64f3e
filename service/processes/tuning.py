"""What this process asks of the system and of MKL: freed memory, threads, products. Serves nothing itself."""

import contextlib
import ctypes
import os
import pathlib
from collections.abc import MutableMapping

_M_TRIM_THRESHOLD = -1  # as in glibc's malloc.h
_M_MMAP_THRESHOLD = -3
_LARGEST_HEAP_BLOCK_BYTES = 32 << 20  # the most that glibc takes for M_MMAP_THRESHOLD
_KEPT_BYTES = 256 << 20
_CPU_INFO = pathlib.Path("/proc/cpuinfo")
# Intel's instruction sets for which MKL offers strict reproducibility, the widest first.
_STRICT_MODES = (("avx512f", "AVX512,STRICT"), ("avx2", "AVX2,STRICT"))


def keep_freed_memory() -> bool:
    """Has glibc keep freed memory at hand instead of giving it back; tells whether it could.

    By default it returns blocks above 128 KiB to the system and asks for them anew, and the system clears
    every page: the intermediate tensors of a batch of 256 cost more that way than the batch. Elsewhere
    than on glibc nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK_BYTES)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))


def schedule_in_batches() -> bool:
    """Has threads that wake up wait for the running one's turn to end (SCHED_BATCH); tells whether it could.

    A server library hands every message from its own thread to Python's and back. By default each hand-over
    preempts whoever is at it, so that a batch's answers cost a change of threads each. It holds for threads
    and processes begun afterwards. Elsewhere than on Linux nothing changes.
    """
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        return True
    return False


def make_products_reproducible(
    environment: MutableMapping[str, str], cpu_info: pathlib.Path = _CPU_INFO
) -> None:
    """Asks MKL for matrix products whose bits do not depend on how many rows are multiplied together.

    By default MKL on Intel's processors with AVX-512 sums products of few rows in another order than those
    of many rows, so a prediction's last bits would depend on the batch (docs/adr/0010). MKL reads the
    variable at its first product, so this comes before torch is imported; processes started later inherit
    the variable. A value that is set already stays. Other makers' processors have no strict mode; there the
    padding of the artifact's rows is enough.
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
