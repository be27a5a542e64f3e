"""How the process's allocator deals with what is freed. Knows nothing of what the memory is for."""

import ctypes

_M_TRIM_THRESHOLD = -1  # as in glibc's malloc.h
_M_MMAP_THRESHOLD = -3
_LARGEST_HEAP_BLOCK_BYTES = 32 << 20  # the most that glibc takes for M_MMAP_THRESHOLD
_KEPT_BYTES = 256 << 20


def keep_freed() -> bool:
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
