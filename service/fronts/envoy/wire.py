"""gRPC's wire over HTTP/2, without a network: frames in and out, time-outs, statuses as headers.

After gRPC's "PROTOCOL-HTTP2" (grpc/grpc, doc/PROTOCOL-HTTP2.md). Knows no server library.
"""

import base64
import re
from urllib.parse import quote

from service.errors import Code
from service.rpc.inflation import WINDOW_BITS, Packed
from service.rpc.statuses import RefusedError, Status

CONTENT_TYPE = b"application/grpc"
OK_TRAILERS = [(b"grpc-status", b"0")]
ENCODINGS = b"identity,deflate,gzip"  # the encodings that a request may have
_PREFIX_BYTES = 5  # the flag and the length before each message
_PIECE_BYTES = 64  # what a piece takes beside its bytes
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_MESSAGE_SAFE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

Headers = list[tuple[bytes, bytes]]


def refused(code: Code, message: str) -> RefusedError:
    """Returns the exception that ends a call whose wire format is wrong; its status has no details."""
    return RefusedError(Status(int(code), message, b""))


def frame(message: bytes) -> bytes:
    """Returns a message's frame: a flag for no compression, the length, and the message."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class Deframer:
    """Cuts one direction of a call's bytes, which come in pieces of any size, into messages.

    Compressed messages stay so: whoever takes them has them inflated when there is room.

    Args:
        max_message_bytes: the largest message, as it comes.
        encoding: the call's grpc-encoding.

    Raises:
        RefusedError: UNIMPLEMENTED, the encoding is not in `ENCODINGS`.
    """

    def __init__(self, max_message_bytes: int, encoding: bytes = b"identity") -> None:
        if encoding not in (b"identity", b"") and encoding not in WINDOW_BITS:
            name = encoding.decode("ascii", "replace")[:32]
            raise refused(
                Code.UNIMPLEMENTED, f"grpc-encoding {name!r} is not known here: use {ENCODINGS.decode()}"
            )
        self._max_message_bytes = max_message_bytes
        self._encoding = encoding
        self._pieces: list[bytes] = []  # of an incomplete message
        self._missing_bytes = 0  # at least so many until the message is complete
        self.num_partial_bytes = 0
        """The bytes held of an incomplete message."""

    def feed(self, data: bytes) -> list[bytes | Packed]:
        """Takes the next bytes and returns the messages that they complete.

        Raises:
            RefusedError: RESOURCE_EXHAUSTED, a message is too large; INTERNAL, a frame is not valid.
        """
        if self._pieces:
            self._pieces.append(data)
            self._missing_bytes -= len(data)
            self.num_partial_bytes += len(data) + _PIECE_BYTES
            if self._missing_bytes > 0:
                return []
            data = b"".join(self._pieces)
            self._pieces = []
            self.num_partial_bytes = 0
        elif data[:1] == b"\0":
            length = len(data) - _PREFIX_BYTES
            is_whole = int.from_bytes(data[1:_PREFIX_BYTES], "big") == length
            if is_whole and length <= self._max_message_bytes:  # almost always: exactly one message
                return [data[_PREFIX_BYTES:]]
        messages: list[bytes | Packed] = []
        at, size, needed = 0, len(data), _PREFIX_BYTES
        while size - at >= _PREFIX_BYTES:
            start = at + _PREFIX_BYTES
            length = int.from_bytes(data[at + 1 : start], "big")
            if length > self._max_message_bytes:
                raise self._too_large(length)
            if size - start < length:
                needed += length
                break
            message = data[start : start + length]
            messages.append(message if not data[at] else self._packed(data[at], message))
            at = start + length
        if at < size:
            self._pieces = [data[at:]]
            self.num_partial_bytes = size - at + _PIECE_BYTES
            self._missing_bytes = needed - (size - at)
        return messages

    def close(self) -> None:
        """Checks that the bytes end with a complete message, as no more bytes come.

        Raises:
            RefusedError: INTERNAL, the last message is not complete.
        """
        if self._pieces:
            raise refused(Code.INTERNAL, "the last message is not complete")

    def _too_large(self, length: int) -> RefusedError:
        most = self._max_message_bytes
        return refused(Code.RESOURCE_EXHAUSTED, f"Received message larger than max ({length} vs. {most})")

    def _packed(self, flag: int, message: bytes) -> Packed:
        bits = WINDOW_BITS.get(self._encoding)
        if flag != 1 or bits is None:
            raise refused(Code.INTERNAL, f"a message has the flag {flag}, and the call no grpc-encoding")
        return Packed(message, bits)


def timeout_seconds(value: bytes | None) -> float | None:
    """Returns the seconds of a grpc-timeout header; None if there is no header.

    Raises:
        RefusedError: INTERNAL, the header's value is not valid.
    """
    if value is None:
        return None
    found = _TIMEOUT.fullmatch(value)
    if found is None:
        raise refused(
            Code.INTERNAL, "grpc-timeout is not valid: it takes up to eight digits and one of H M S m u n"
        )
    return int(found[1]) * _SECONDS[found[2]]


def trailers(status: Status | None) -> Headers:
    """Returns the headers that hold a call's status; None stands for OK."""
    if status is None:
        return OK_TRAILERS
    found = [
        (b"grpc-status", str(status.code).encode()),
        (b"grpc-message", quote(status.message, safe=_MESSAGE_SAFE).encode()),
    ]
    for name, value in status.trailers:
        raw = value.encode() if isinstance(value, str) else base64.b64encode(value).rstrip(b"=")
        found.append((name.encode(), raw))
    return found
