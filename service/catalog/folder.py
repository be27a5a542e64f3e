"""The models' folder: which versions it has, and which of their files somebody is still writing.

Knows size, time and number of a file. Does not read any.
"""

import dataclasses
import pathlib

from service.runtime import artifact


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """A version's file at the time of a look; `mark` changes when somebody writes to the file."""

    name: str
    version: str
    path: pathlib.Path
    mark: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class Folder:
    """The versions, as they were when the folder was last looked at."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._before: dict[str, Version] = {}
        self.versions: dict[str, Version] = {}
        """What was found, by "NAME/VERSION"."""

    def look(self) -> None:
        """Looks at the folder and replaces `versions` by what is there.

        Raises:
            ConfigError: there is no such folder, or no version in it; `versions` is what it was.
        """
        found = {}
        for name, version, path in artifact.discover(self._path):
            try:
                status = path.stat()
            except OSError:  # gone since it was listed
                continue
            mark = status.st_size, status.st_mtime_ns, status.st_ino
            found[f"{name}/{version}"] = Version(name, version, path, mark)
        self._before, self.versions = self.versions, found

    def is_unchanged(self, version: Version) -> bool:
        """Returns whether a version's file was the same at the look before: nobody is writing to it."""
        return self._before.get(str(version)) == version

    def is_gone(self, model: str) -> bool:
        """Returns whether "NAME/VERSION" was missing both at this look and at the one before."""
        return model not in self.versions and model not in self._before
