"""How the system is asked to treat this process: its freed memory, its threads."""

import contextlib
import ctypes
import os

_M_TRIM_THRESHOLD = -1  # as in glibc's malloc.h
_M_MMAP_THRESHOLD = -3
_LARGEST_HEAP_BLOCK_BYTES = 32 << 20  # the most that glibc takes for M_MMAP_THRESHOLD
_KEPT_BYTES = 256 << 20


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
