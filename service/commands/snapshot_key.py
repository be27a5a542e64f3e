"""The command `python -m service snapshot-key`: prints a new key for the file of --snapshot-key.

Owns how a key is made. Does not know the file.
"""

import argparse
import base64
import secrets
from collections.abc import Sequence

_KEY_BYTES = 32


def main(arguments: Sequence[str]) -> int:
    """Prints one key, in base64, and returns the exit status."""
    argparse.ArgumentParser(
        prog="python -m service snapshot-key",
        description="Prints a new key for the file of --snapshot-key. The file's first key signs snapshots;"
        " put a new key last, reload every server, and then move it to the top.",
    ).parse_args(arguments)
    print(base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode())
    return 0
