"""A server's folder for sockets and files that end with the server: at its end, or at another server's start.

Owns the folder and the lock that says whether its server lives. The system releases the lock when the last
process of the server has ended, however it ended. Does not know what is in the folder.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import stat
import tempfile

_PREFIX = "streamcell-"
_LOCK = "lock"


class ServerFolder:
    """A new folder that only this user can read; folders of this user's dead servers are removed first.

    Args:
        parent: where the folder is made, and where folders of dead servers are looked for.
    """

    def __init__(self, parent: pathlib.Path | None = None) -> None:
        parent = parent or pathlib.Path(tempfile.gettempdir())
        _remove_dead(parent)
        self.path = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        unlocked = self.path / f"{_LOCK}.new"
        self.lock = os.open(unlocked, os.O_RDWR | os.O_CREAT, 0o600)
        """The descriptor that holds the lock. Workers inherit it: the folder lasts as long as any of them."""
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        unlocked.rename(self.path / _LOCK)  # others see the lock's file only once the lock is held
        self._is_open = True

    def close(self) -> None:
        """Removes the folder. May be called twice."""
        if self._is_open:
            self._is_open = False
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self.lock)


def _remove_dead(parent: pathlib.Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another server may remove the folder at the same time
            _remove_if_dead(folder)


def _remove_if_dead(folder: pathlib.Path) -> None:
    """Removes a folder of this user whose lock nobody holds; one without a lock may be no server's.

    Raises:
        OSError: the folder's server lives, or the folder is another user's, no server's, or gone.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        return
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
