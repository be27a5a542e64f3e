"""The machine and the versions that figures belong to, and its cores."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Collection, Iterator

_PACKAGES = ("torch", "grpcio", "uvloop", "protobuf", "numpy", "pyvoy")


def describe() -> dict[str, str]:
    """Returns the machine's CPU and cores, and the versions of what matters here."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # not every system has pyvoy
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": _cpu_model(),
        "cores": str(len(cores()) or os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **versions,
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def cores() -> list[int]:
    """Returns the cores this process may run on; none where the system cannot tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@contextlib.contextmanager
def pinned(cores: Collection[int]) -> Iterator[None]:
    """Makes what is started within the block run on these cores alone; none of them leaves it free."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
