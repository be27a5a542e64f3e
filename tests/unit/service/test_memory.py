"""The allocator's settings."""

import ctypes

from service import memory


class Libc:
    """A C library that takes, or refuses, what it is told."""

    def __init__(self, answer):
        self.told = []
        self.mallopt = lambda *said: self.told.append(said) or answer


def test_keeps_freed_memory_where_the_library_can(monkeypatch):
    """Both of glibc's thresholds are raised; the largest block is what glibc takes at most."""
    libc = Libc(1)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    assert memory.keep_freed()
    assert libc.told == [(-3, 32 << 20), (-1, 256 << 20)]


def test_changes_nothing_elsewhere(monkeypatch):
    """A library without mallopt, or one that refuses, is no error."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libc(0))
    assert not memory.keep_freed()
