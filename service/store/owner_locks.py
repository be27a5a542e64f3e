"""Which owners of an SQLite store live: each locks a file of its own, and the lock ends with its process.

Owns the folder of these files, beside the database. A lock needs no clock, and tells of a killed process at
once. A process that is stopped counts as living. Does not know rows.
"""

import contextlib
import fcntl
import os
import pathlib

_NEW = ".new-"  # how the name of a file begins that is not locked yet


class OwnerLocks:
    """The lock of one owner, and a look at the locks of others."""

    def __init__(self, folder: pathlib.Path, owner: str) -> None:
        self._folder = folder
        self._path = folder / owner
        self._file = -1

    def hold(self) -> None:
        """Makes sure that this owner's lock is there, and seen by others: its file may have been removed.

        Raises:
            OSError: the file cannot be made.
        """
        if self._file >= 0 and self._is_in_place():
            return
        self.release()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._remove_dead()
        new = self._folder / (_NEW + self._path.name)
        self._file = os.open(new, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(self._path)

    def release(self) -> None:
        """Ends the lock: this owner counts as dead from now on."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._file)
            self._file = -1

    def is_alive(self, owner: str) -> bool:
        """Returns whether an owner holds its lock."""
        try:
            file = os.open(self._folder / owner, os.O_RDONLY)
        except OSError:
            return False
        try:
            # Shared, so that two owners who look at the same time do not take each other for the third.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except OSError:
            return False

    def _remove_dead(self) -> None:
        """Removes the files that killed processes left behind."""
        for each in self._folder.iterdir():
            if not each.name.startswith(_NEW) and not self.is_alive(each.name):
                each.unlink(missing_ok=True)
