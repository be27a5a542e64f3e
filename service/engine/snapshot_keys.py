"""The keys that sign snapshots which leave the server, and verify those that come (docs/snapshots.md).

Owns the key file and the signature. Does not know what a snapshot holds, nor who may restore one.
"""

import base64
import binascii
import hashlib
import hmac
import re
import struct
from typing import Any

from service import line_lists
from service.engine.snapshot import SnapshotError
from service.watched_files import WatchedFile

MAGIC = b"SCSS"
VERSION = 1
"""The version of the signature that is written and read."""
LEAST_KEY_BYTES = 32
_KEY_ID_BYTES = 8
_MAC_BYTES = hashlib.sha256().digest_size
# Little-endian: magic, version, reserved (0), key id, HMAC of everything else. The snapshot follows.
_HEAD = struct.Struct(f"<4sHH{_KEY_ID_BYTES}s{_MAC_BYTES}s")
_SIGNED_HEAD_BYTES = _HEAD.size - _MAC_BYTES
_KEY_ID_PURPOSE, _MAC_PURPOSE = b"streamcell snapshot key id", b"streamcell snapshot"
_HEX = re.compile(rf"(?:[0-9a-fA-F]{{2}}){{{LEAST_KEY_BYTES},}}")


class SnapshotKeys:
    """The keys in a file: the first one signs, each of them verifies.

    A new key can so be added everywhere before it signs, and an old one verifies until it is removed. Without
    a file nothing is signed, and a signature that another server made is not looked at.

    Args:
        path: the file, one key a line as `parse` reads them; empty: no keys.

    Raises:
        ConfigError: the file cannot be read, or holds no keys.
    """

    def __init__(self, path: str = "") -> None:
        self._keys: dict[bytes, bytes] = {}  # by key id, in the file's order
        self.files: list[WatchedFile[Any]] = []
        """The file that the keys come from, if any; whoever owns this object looks at it."""
        if path:
            self.files.append(WatchedFile("--snapshot-key", path, parse, self._use))
        for file in self.files:
            file.load()

    def _use(self, keys: list[bytes]) -> None:
        self._keys = {_hmac(key, _KEY_ID_PURPOSE)[:_KEY_ID_BYTES]: key for key in keys}

    def sign(self, raw: bytes) -> bytes:
        """Returns a snapshot with the first key's signature before it; without keys the snapshot alone."""
        for key_id, key in self._keys.items():
            mac = _mac(key, _HEAD.pack(MAGIC, VERSION, 0, key_id, b""), raw)
            return _HEAD.pack(MAGIC, VERSION, 0, key_id, mac) + raw
        return raw

    def verified(self, raw: bytes) -> bytes:
        """Returns the snapshot within a client's bytes, whose signature is right if there are keys.

        Raises:
            SnapshotError: the bytes are not signed, signed with a key that is not here, or changed since.
        """
        if not raw.startswith(MAGIC):
            if self._keys:
                raise SnapshotError("it is not signed, and this server restores signed snapshots alone")
            return raw
        if len(raw) < _HEAD.size:
            raise SnapshotError("its signature is cut off")
        _, version, reserved, key_id, mac = _HEAD.unpack_from(raw)
        if (version, reserved) != (VERSION, 0):
            raise SnapshotError(f"its signature is of version {version}; this server reads {VERSION}")
        if self._keys:
            key = self._keys.get(key_id)
            if key is None:
                raise SnapshotError("it is signed with another key, which this server does not have")
            if not hmac.compare_digest(mac, _mac(key, raw, raw[_HEAD.size :])):
                raise SnapshotError("its signature is wrong: it was changed or damaged after it was signed")
        return raw[_HEAD.size :]


def parse(text: str) -> list[bytes]:
    """Returns the keys in a text: one a line, in hexadecimal or base64; empty lines and # lines are skipped.

    Raises:
        ValueError: a line is no key, or there is none. The message has the line's number, not the line.
    """
    keys = [_key(line, number) for number, line in line_lists.entries(text)]
    if not keys:
        raise ValueError("holds no key")
    return keys


def _key(line: str, number: int) -> bytes:
    if _HEX.fullmatch(line):  # as base64 it would be a key, too, but nobody makes one of these digits alone
        return bytes.fromhex(line)
    try:
        key = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"line {number} is neither hexadecimal nor base64") from None
    if len(key) < LEAST_KEY_BYTES:
        raise ValueError(f"line {number} has {len(key)} bytes; a key has at least {LEAST_KEY_BYTES}")
    return key


def _mac(key: bytes, head: bytes, raw: bytes) -> bytes:
    """Returns the HMAC of the head as far as its own place, and of the whole snapshot."""
    return _hmac(key, _MAC_PURPOSE + head[:_SIGNED_HEAD_BYTES] + raw)


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")
