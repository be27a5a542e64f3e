"""The models' folder: which versions lie in it, and which of them somebody is still writing.

Knows files by what the system says of them alone; what is in one is not looked at.
"""

import dataclasses
import pathlib

from service.runtime import artifact


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """A version's file, as it was when it was looked at: `mark` is another one when it is written to."""

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
        """Looks at the folder; `versions` is then new.

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

    def is_settled(self, version: Version) -> bool:
        """Tells whether a version was the same at the look before: nobody is writing it."""
        return self._before.get(str(version)) == version

    def is_gone(self, model: str) -> bool:
        """Tells whether "NAME/VERSION" was not there, at this look and the one before."""
        return model not in self.versions and model not in self._before
