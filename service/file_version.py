"""What distinguishes a file's content from an earlier one. Reads no file."""

import os
import pathlib

FileVersion = tuple[int, int, int]
"""Time of the last write in ns, size in bytes, inode number: a write or a rename changes one of them."""


def version_of(path: str | pathlib.Path) -> FileVersion | None:
    """Returns the version of a file, or of the file that a link names; None if there is none to look at."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
