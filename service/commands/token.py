"""The command `python -m service token`: makes a bearer token, and adds its hash to a file of tokens.

The token is shown once and kept nowhere. Does not need a running server, which finds the new line by itself.
"""

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Sequence

from service.identity import tokens
from service.identity.tokens import Tokens

_SECONDS_OF_A_DAY = 86_400
_MAX_DAYS = 36_500


def main(arguments: Sequence[str]) -> int:
    """Prints a new token on standard output, and returns the exit status."""
    options = _parser().parse_args(arguments)
    expires = time.time() + options.days * _SECONDS_OF_A_DAY
    try:
        token, record = tokens.issue(options.principal, expires)
        _append(options.file, record.line())
    except (ValueError, OSError) as error:
        print(f"streamcell: {error}", file=sys.stderr)
        return 2
    print(token)
    print(
        f"Token {record.token_id} of {record.principal} is in {options.file}. It is shown here alone:"
        " give it to its owner, who sends it as 'authorization: Bearer TOKEN'.",
        file=sys.stderr,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service token",
        description="Makes a bearer token, prints it once, and adds its hash to a file of tokens.",
        allow_abbrev=False,
    )
    parser.add_argument("principal", help="whose it is: sessions belong to this name")
    parser.add_argument(
        "--file", type=pathlib.Path, required=True, help="the file that --tokens of the server names"
    )
    parser.add_argument(
        "--days", type=_days, default=float("inf"), help="days until it expires, more than 0 (never)"
    )
    return parser


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days <= _MAX_DAYS:
        raise argparse.ArgumentTypeError(
            f"must be more than 0 and at most {_MAX_DAYS}, not {text!r}; without --days a token never expires"
        )
    return days


def _append(file: pathlib.Path, line: str) -> None:
    """Adds a line to a file that only its owner can read, and makes the file if there is none.

    Raises:
        ValueError: the file has something else in it.
    """
    if file.exists():
        try:
            Tokens.parse(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} is no file of tokens: {error}") from None
    # One write of one line at the end: a server that reads meanwhile sees the line or does not.
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab", buffering=0) as opened:
        is_line_open = file.stat().st_size > 0 and not file.read_bytes().endswith(b"\n")
        opened.write(b"\n" * is_line_open + line.encode() + b"\n")
