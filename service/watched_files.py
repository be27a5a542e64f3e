"""Files whose content is used while the server runs, and replaced when they change.

A file that has become wrong changes nothing: what was read before stays in use, and the log says why. Does
not know what is in a file.
"""

import asyncio
import contextlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from service.background import BackgroundTask
from service.errors import ConfigError
from service.file_version import FileVersion, version_of
from service.telemetry import log

_Content = TypeVar("_Content")


class Watched(Protocol):
    """What may change."""

    def look(self) -> None:
        """Takes a change over, if there is one, and logs the outcome."""


class WatchedFile(Generic[_Content]):
    """A file of settings' that may change.

    Args:
        flag: the flag that names the file, for messages.
        path: where it is.
        parse: returns the content for the file's text, or raises a ValueError.
        use: called with the content, at first and after each change.
    """

    def __init__(
        self, flag: str, path: str, parse: Callable[[str], _Content], use: Callable[[_Content], None]
    ) -> None:
        self._flag = flag
        self._path = pathlib.Path(path)
        self._parse = parse
        self._use = use
        self._seen: FileVersion | None = None

    def load(self) -> None:
        """Reads the file for the first time.

        Raises:
            ConfigError: the file cannot be read or has something wrong; the message names flag and file.
        """
        try:
            self._seen = version_of(self._path)
            self._use(self._parse(self._path.read_text()))
        except OSError as error:
            raise ConfigError(f"{self._flag}: {self._path}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{self._flag}: {self._path}: {error}") from None

    def look(self) -> None:
        """Reads the file again if it has changed, and logs the outcome."""
        version = version_of(self._path)
        if version == self._seen:
            return
        try:
            self._use(self._parse(self._path.read_text()))
        except OSError as error:
            if self._seen is not None:  # a file that stays away is told once
                warn_not_reloaded(self._flag, str(self._path), str(error.strerror))
            version = None
        except ValueError as error:
            warn_not_reloaded(self._flag, str(self._path), str(error))
        else:
            log.info("file_reloaded", setting=self._flag, path=str(self._path))
        self._seen = version


def warn_not_reloaded(flag: str, path: str, why: str) -> None:
    """Logs that a changed file cannot be used."""
    log.warning(
        "file_not_reloaded", setting=flag, path=path, why=why, effect="what was read before stays in use"
    )


class FileWatch:
    """Looks at files from time to time, and when it is told to.

    Args:
        files: the files.
        poll_seconds: the time between two looks; 0: only when told.
        count_fault: called with the task's name when a look raised.
    """

    def __init__(
        self, files: Sequence[Watched], poll_seconds: float, count_fault: Callable[[str], None]
    ) -> None:
        self._files = files
        self._poll_seconds = poll_seconds
        self._is_look_due = asyncio.Event()
        self._task = BackgroundTask("files_watch", self._turn, count_fault)

    def start(self) -> None:
        """Begins to look, if there is a file."""
        if self._files:
            self._task.start()

    async def stop(self) -> None:
        """Ends looking."""
        await self._task.stop()

    def look_soon(self) -> None:
        """Looks at every file now."""
        self._is_look_due.set()

    async def _turn(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._poll_seconds or None):
                await self._is_look_due.wait()
        self._is_look_due.clear()
        for file in self._files:
            file.look()  # small files: a thread would be slower, and `use` need not care for threads
