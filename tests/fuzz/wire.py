"""The envoy front's wire: frames in pieces are the frames in one, and what is wrong is refused.

An input is a byte that names the encoding, a byte for the size of the pieces, a grpc-timeout up to a zero,
and a call's bytes.
"""

import itertools
import zlib

from service.fronts.envoy import wire
from service.fronts.envoy.wire import Deframer
from service.rpc.inflation import Inflation
from service.rpc.request_bytes import RequestBytes
from service.rpc.statuses import RefusedError, Status
from tests.fuzz import mutations

ENCODINGS = [b"identity", b"", b"gzip", b"deflate", b"br"]
MAX_BYTES = 1 << 10


def run(raw):
    """Parses the time-out; cuts the bytes into messages, at once and in pieces; encodes a status of them."""
    encoding, size, rest = ENCODINGS[raw[0] % len(ENCODINGS)] if raw else b"", 1 + sum(raw[1:2]), raw[2:]
    value, _, body = rest.partition(b"\0")
    check_timeout(value)
    whole, whole_refusal = messages(encoding, [body])
    pieces, refusal = messages(encoding, [body[at : at + size] for at in range(0, len(body), size)])
    assert refusal == whole_refusal
    assert pieces[: len(whole)] == whole
    assert len(pieces) == len(whole) or refusal  # the messages before a wrong one come in pieces alone
    assert all(len(message) <= MAX_BYTES for message in pieces)
    for name, text in wire.trailers(Status(3, body.decode(errors="replace"), body, 5)):
        assert name.isascii()
        assert text.isascii()
        assert b"\n" not in text


def check_timeout(value):
    """Checks that a time-out is a number of seconds, or refused."""
    try:
        assert (wire.timeout_seconds(value) or 0.0) >= 0.0
    except RefusedError:
        return


def messages(encoding, pieces):
    """Returns the messages in bytes that come in pieces, and the refusal."""
    found = []
    try:
        deframer = Deframer(MAX_BYTES, encoding)
        for piece in pieces:
            for message in deframer.feed(piece):
                found.append(message if isinstance(message, bytes) else message.raw)
                assert isinstance(message, bytes) or len(inflated(message)) <= MAX_BYTES
        deframer.close()
    except RefusedError as error:
        return found, (error.status.code, error.status.message)
    return found, None


def inflated(packed):
    """Returns what a compressed message inflates to, b"" for a refusal."""
    found = []
    clock = itertools.count()  # every message has a turn of its own
    Inflation(MAX_BYTES, RequestBytes(1), call_later=None, clock=clock.__next__).inflate(packed, found.append)
    return b"" if isinstance(found[0], RefusedError) else found[0]


def mutate(raw, chance):
    """Changes bytes, or adds a frame, packed or not."""
    if chance.random() < 0.7:
        return mutations.of_bytes(raw, chance)
    message = chance.randbytes(chance.choice([0, 1, 20])) * chance.choice([1, 1, 100])
    kind = chance.randrange(3)
    packed = [message, zlib.compress(message), zlib.compress(message, wbits=16 + zlib.MAX_WBITS)][kind]
    return raw + bytes([kind > 0]) + len(packed).to_bytes(4, "big") + packed


def seeds():
    """Returns calls with and without encoding."""
    packed = zlib.compress(b"message" * 9)
    deflated = b"\3\7" + b"10S\0" + b"\1" + len(packed).to_bytes(4, "big") + packed
    return [b"\0\3" + b"100m\0" + wire.frame(b"message") + wire.frame(b""), deflated, b"\2\0" + b"1x\0\0\0"]
