"""Files that list something, a line each: hashes of tokens or artifacts, keys.

Does not know what a line says.
"""

from collections.abc import Iterator


def entries(text: str) -> Iterator[tuple[int, str]]:
    """Yields a file's lines, stripped, with their numbers from 1, but for empty lines and comments (#)."""
    for number, line in enumerate(text.split("\n"), 1):  # alone: other marks may be part of a name
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped
