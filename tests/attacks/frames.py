"""HTTP/2 frames as bytes, made by hand: the valid ones that no library would send so many of, and bad ones.

Owns no connection.
"""

import struct

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0, 1, 2, 3, 4, 6, 7, 8, 9,
)  # fmt: skip
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL = 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LARGE_VALUE = (
    b"v" * 3900
)  # fits a peer's table of 4,096 bytes, with its name and the 32 that each entry counts
_FIRST_DYNAMIC = 62  # the index of the newest entry of that table


def frame(kind, flags, stream, payload=b""):
    """Returns a frame."""
    head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags))
    return head + struct.pack(">I", stream) + payload


def literal(name, value, *, first=b"\x00"):
    """Returns a header as a literal; `first` is 0x40 for one that the peer puts into its table."""
    return first + _string(name) + _string(value)


def _string(text):
    length = len(text)
    if length < 127:
        return bytes((length,)) + text
    rest, coded = length - 127, b"\x7f"
    while rest >= 128:
        coded += bytes((rest % 128 + 128,))
        rest //= 128
    return coded + bytes((rest,)) + text


def call_headers(path, extra=b""):
    """Returns the header block of a gRPC call; `extra` is coded already."""
    named = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"a"))
    rest = ((b"content-type", b"application/grpc"), (b"te", b"trailers"))
    return b"".join(literal(*each) for each in (*named, *rest)) + extra


def indexed(count):
    """Returns headers of a byte each that stand for the large header that is newest in the peer's table."""
    return bytes((0x80 | _FIRST_DYNAMIC,)) * count


def table_entry():
    """Returns the large header, which the peer puts into its table."""
    return literal(b"x-large", LARGE_VALUE, first=b"\x40")


def opened(stream, block, flags=0):
    """Returns the frame that begins a call."""
    return frame(HEADERS, END_HEADERS | flags, stream, block)


def reset(stream):
    """Returns the frame that cancels a call."""
    return frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))


def streams(count, first=1):
    """Returns the numbers of a client's first streams."""
    return range(first, first + 2 * count, 2)
