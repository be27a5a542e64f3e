"""The machine and the package versions that figures belong to, and the cores."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Collection, Iterator

_PACKAGES = ("torch", "grpcio", "uvloop", "protobuf", "numpy", "pyvoy")


def describe() -> dict[str, str]:
    """Returns the machine's CPU and cores, and the versions of the packages that matter."""
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
    """Returns the cores that this process may run on; none if the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@contextlib.contextmanager
def pinned(cores: Collection[int]) -> Iterator[None]:
    """Pins this process, and what it starts within the block, to cores. Without cores it pins nothing."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
