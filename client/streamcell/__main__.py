"""Runs the command `streamcell`; also as `python -m streamcell`."""

import sys

from streamcell.cli import run


def main() -> None:
    """Runs the command and exits with its status."""
    sys.exit(run())


if __name__ == "__main__":
    main()
