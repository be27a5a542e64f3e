"""The part of HTTP/2 that a load generator needs: makes a client's frames, and splits a server's bytes.

After RFC 9113, and RFC 7541 for headers. Headers are written out in full, so there is no table of them. The
server's headers are not read, and flow control windows are not counted: this is for small messages, one at a
time on a stream. Knows no network.
"""

import struct
from collections.abc import Mapping

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 1
_END_HEADERS = 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_ENABLE_PUSH, _INITIAL_WINDOW_SIZE = 2, 4
_LARGEST_WINDOW, _DEFAULT_WINDOW = 2**31 - 1, 65_535
_HEAD = struct.Struct(">HBBBI")  # a frame's length (its upper 16 bits, its lower 8), kind, flags and stream

Frame = tuple[int, int, int, bytes]  # kind, flags, stream, payload


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Returns a frame."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def opening() -> bytes:
    """Returns the first bytes of a client, which give the server the largest flow control windows."""
    settings = struct.pack(">HIHI", _ENABLE_PUSH, 0, _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
    window = struct.pack(">I", _LARGEST_WINDOW - _DEFAULT_WINDOW)
    return _PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, window)


def request(headers: Mapping[str, str], stream: int) -> bytes:
    """Returns the frame that begins a request. The headers are shorter than a frame: 16 KiB."""
    fields = (b"\0" + _text(name) + _text(value) for name, value in headers.items())
    return frame(HEADERS, _END_HEADERS, stream, b"".join(fields))


def _text(text: str) -> bytes:
    return _length(len(text)) + text.encode()


def _length(size: int) -> bytes:
    """Returns a length with a prefix of seven bits (RFC 7541, section 5.1)."""
    if size < 127:
        return bytes([size])
    size -= 127
    found = bytearray([127])
    while size >= 128:
        found.append(128 | size & 127)
        size >>= 7
    found.append(size)
    return bytes(found)


def message(raw: bytes) -> bytes:
    """Returns a message as gRPC frames it in a request's data: after a flag and its length."""
    return b"\0" + len(raw).to_bytes(4, "big") + raw


class Reader:
    """Splits a server's bytes, which come in pieces of any size, into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """Takes the next bytes and returns the frames that are now complete."""
        data = self._rest + data
        found: list[Frame] = []
        at, size = 0, len(data)
        while size - at >= _HEAD.size:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            begin = at + _HEAD.size
            end = begin + (high << 8 | low)
            if end > size:
                break
            found.append((kind, flags, stream, data[begin:end]))
            at = end
        self._rest = data[at:]
        return found
