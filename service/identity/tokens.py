"""Bearer tokens of a file: how one is made, and whose a token is.

The file has a line for each token: its principal, its id, the SHA-256 of the whole token, and its end. A
token is 256 random bits, so a hash without salt or rounds gives nothing away. Does not know how the file is
read.
"""

import dataclasses
import datetime
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping

from service import line_lists

PREFIX = "streamcell_"
PRINCIPAL_RULE = "must be 1 to 128 printable ASCII characters, no spaces, and not begin with #"
NEVER = "never"
_PRINCIPAL = re.compile(r"(?!#)[!-~]{1,128}")
_ID = re.compile(r"[0-9a-f]{12}")
_HASH = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(rf"{PREFIX}([0-9a-f]{{12}})_[A-Za-z0-9_-]{{43}}")


@dataclasses.dataclass(frozen=True)
class TokenRecord:
    """What the file has of a token. `expires` is Unix time in seconds; infinity: never."""

    principal: str
    token_id: str
    digest: bytes
    expires: float

    def line(self) -> str:
        """Returns the token's line in the file."""
        return f"{self.principal} {self.token_id} {self.digest.hex()} {_shown(self.expires)}"


_NOBODY = TokenRecord("", "", bytes(hashlib.sha256().digest_size), float("-inf"))


def issue(principal: str, expires: float) -> tuple[str, TokenRecord]:
    """Returns a new token, and its record.

    Raises:
        ValueError: the principal is not valid.
    """
    if not _PRINCIPAL.fullmatch(principal):
        raise ValueError(f"a principal {PRINCIPAL_RULE}")
    token_id = secrets.token_hex(6)
    token = f"{PREFIX}{token_id}_{secrets.token_urlsafe(32)}"
    return token, TokenRecord(principal, token_id, _digest(token), expires)


class Tokens:
    """The tokens of a file."""

    def __init__(self, records: Iterable[TokenRecord]) -> None:
        self._records: Mapping[str, TokenRecord] = {each.token_id: each for each in records}

    @classmethod
    def parse(cls, text: str) -> "Tokens":
        """Returns the tokens that a file's text lists; empty lines and lines with # are skipped.

        Raises:
            ValueError: a line is wrong; the message has its number and never its hash.
        """
        records: dict[str, TokenRecord] = {}
        for number, line in line_lists.entries(text):
            try:
                record = _record(line.split())
                if record.token_id in records:
                    raise ValueError("the id stands on an earlier line")
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            records[record.token_id] = record
        return cls(records.values())

    def __len__(self) -> int:
        return len(self._records)

    def find(self, token: str) -> TokenRecord | None:
        """Returns the record of a token, expired or not; None if the file has none.

        Takes the same work whether the id is known, the secret wrong, or neither.
        """
        found = _TOKEN.fullmatch(token)
        record = self._records.get(found[1] if found else "", _NOBODY)
        is_right = hmac.compare_digest(record.digest, _digest(token))
        return record if is_right and record is not _NOBODY else None


def _record(fields: list[str]) -> TokenRecord:
    if len(fields) != 4:
        raise ValueError(f"{len(fields)} words, not the four of PRINCIPAL ID SHA-256 END")
    principal, token_id, digest, end = fields
    for text, rule, name in (
        (principal, _PRINCIPAL, "principal"),
        (token_id, _ID, "id"),
        (digest, _HASH, "hash"),
    ):
        if not rule.fullmatch(text):
            raise ValueError(f"the {name} is not valid")
    return TokenRecord(principal, token_id, bytes.fromhex(digest), _seconds(end))


def _seconds(end: str) -> float:
    if end == NEVER:
        return float("inf")
    try:
        instant = datetime.datetime.fromisoformat(end)
    except ValueError:
        raise ValueError(
            f"{end[:64]!r} is no end: an instant such as 2030-01-31T12:00:00Z, or {NEVER}"
        ) from None
    if instant.tzinfo is None:
        raise ValueError(f"the end {end} has no time zone: 2030-01-31T12:00:00Z has")
    return instant.timestamp()


def _shown(expires: float) -> str:
    if expires == float("inf"):
        return NEVER
    return datetime.datetime.fromtimestamp(expires, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
