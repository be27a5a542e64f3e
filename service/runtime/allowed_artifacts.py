"""The list of artifacts that may be loaded, by the SHA-256 of their bytes: an artifact is code.

Owns the reading of the list. Does not know where artifacts come from, nor what is in them.
"""

import hashlib
import pathlib
import re

from service import line_lists
from service.errors import ConfigError

# As `sha256sum` writes it: a backslash stands before the hash of a file whose name is escaped.
_LINE = re.compile(r"\\?([0-9a-fA-F]{64})(?:[ \t].*)?")
_MAX_FILE_BYTES = 1 << 24


class NotAllowedError(ValueError):
    """Bytes are not on the list; the message says what to do."""


class AllowedArtifacts:
    """The list in a file; without a file every artifact may be loaded.

    Args:
        path: a file as `sha256sum` writes it; empty: no list.

    Raises:
        ConfigError: the file cannot be read, or has a line without a hash.
    """

    def __init__(self, path: str = "") -> None:
        self._path = path
        self._hashes = _read(path) if path else frozenset()

    def look(self) -> bool:
        """Reads the file again; returns whether the list has changed.

        Raises:
            ConfigError: the file cannot be used; the list stays as it was.
        """
        before = self._hashes
        if self._path:
            self._hashes = _read(self._path)
        return self._hashes != before

    def check(self, raw: bytes) -> None:
        """Checks that an artifact of these bytes may be loaded.

        Raises:
            NotAllowedError: the bytes are not on the list.
        """
        if not self._path:
            return
        found = hashlib.sha256(raw).hexdigest()
        if found not in self._hashes:
            raise NotAllowedError(
                f"its SHA-256 {found} is not in --allowed-artifacts {self._path}: it was not loaded. If you"
                " trust where the file came from, add the hash as a line of its own"
            )


def parse(text: str) -> frozenset[str]:
    """Returns the hashes in a text, one a line; what follows a hash, empty lines and # lines are comments.

    Raises:
        ValueError: a line has no hash; the message has the line's number.
    """
    hashes = set()
    for number, line in line_lists.entries(text):
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"line {number} does not begin with a SHA-256, 64 hexadecimal digits")
        hashes.add(found[1].lower())
    return frozenset(hashes)


def _read(path: str) -> frozenset[str]:
    try:
        with pathlib.Path(path).open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
        if len(raw) > _MAX_FILE_BYTES:
            raise ValueError(f"has more than {_MAX_FILE_BYTES} bytes")
        return parse(raw.decode("utf-8-sig", errors="replace"))  # a name may be of any bytes
    except OSError as error:
        raise ConfigError(f"--allowed-artifacts: {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"--allowed-artifacts: {path}: {error}") from None
