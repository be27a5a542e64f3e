"""The models' folder: which versions it has, and which of their files may still be written to.

Compares size, time and inode number of each file. Does not read a file.
"""

import dataclasses
import pathlib

from service.file_version import FileVersion, version_of
from service.runtime import artifact


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """A version's file at the time of a look."""

    name: str
    version: str
    path: pathlib.Path
    mark: FileVersion
    """Tells whether the file was written to."""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class Folder:
    """The versions, as they were at the last look and at the look before."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._versions_before: dict[str, Version] = {}
        self.versions: dict[str, Version] = {}
        """The versions at the last look, by "NAME/VERSION"."""

    def look(self) -> None:
        """Looks at the folder and replaces `versions` by the versions there.

        Raises:
            ConfigError: there is no such folder, or no version in it; `versions` does not change.
        """
        found = {}
        for name, version, path in artifact.discover(self._path):
            if (mark := version_of(path)) is not None:  # else removed since it was listed
                found[f"{name}/{version}"] = Version(name, version, path, mark)
        self._versions_before, self.versions = self.versions, found

    def is_unchanged(self, version: Version) -> bool:
        """Returns whether a version's file was the same at the look before, so that it seems complete."""
        return self._versions_before.get(str(version)) == version

    def is_gone(self, model: str) -> bool:
        """Returns whether "NAME/VERSION" was missing at the last look and at the look before."""
        return model not in self.versions and model not in self._versions_before
