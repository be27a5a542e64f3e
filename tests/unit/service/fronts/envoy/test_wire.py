"""gRPC's wire: frames in pieces of any size, compression, time-outs, statuses as headers."""

import base64
import contextlib
import gzip
import itertools
import urllib.parse
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Code
from service.fronts.envoy import wire
from service.fronts.envoy.wire import Deframer
from service.rpc.inflation import WINDOW_BITS
from service.rpc.statuses import RefusedError, Status

MESSAGES = st.lists(st.binary(max_size=60), max_size=8)


def pieces_of(raw, cuts):
    """Returns bytes cut at the given places."""
    places = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
    return [raw[start:stop] for start, stop in itertools.pairwise(places)]


class TestFrames:
    """Messages out of bytes."""

    @given(MESSAGES, st.lists(st.integers(0, 600), max_size=20))
    def test_messages_come_out_as_they_went_in_however_they_were_cut(self, messages, cuts):
        """Each message comes out once, in order, as soon as its last byte is there."""
        deframer, found = Deframer(1000), []
        for piece in pieces_of(b"".join(map(wire.frame, messages)), cuts):
            found += deframer.feed(piece)
        deframer.close()
        assert found == messages

    def test_a_large_message_in_many_pieces_is_put_together_once(self):
        """Its pieces are stored as they come until the last is here, so the work is linear in the bytes."""
        message = bytes(range(256)) * 4000
        data = wire.frame(message)
        deframer = Deframer(len(message))
        found = [one for at in range(0, len(data), 100) for one in deframer.feed(data[at : at + 100])]
        assert found == [message]

    @given(MESSAGES.filter(bool))
    def test_messages_split_at_every_byte(self, messages):
        """One byte at a time gives the same messages as all bytes at once."""
        data = b"".join(map(wire.frame, messages))
        one_by_one, at_once = Deframer(1000), Deframer(1000)
        found = [message for byte in data for message in one_by_one.feed(bytes([byte]))]
        assert found == at_once.feed(data) == messages

    @given(
        st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=10), st.sampled_from([b"", b"gzip"])
    )
    def test_garbage_is_messages_or_refused(self, data, cuts, encoding):
        """Any bytes are refused or give messages, none of them over the bound."""
        deframer = Deframer(100, encoding)
        with contextlib.suppress(RefusedError):
            for piece in pieces_of(data, cuts):
                assert all(len(message) <= 100 for message in deframer.feed(piece))
            deframer.close()

    @pytest.mark.parametrize(
        ("encoding", "data", "code"),
        [
            (b"", b"\1\0\0\0\1x", Code.INTERNAL),
            (b"identity", b"\1\0\0\0\1x", Code.INTERNAL),
            (b"gzip", b"\2\0\0\0\1x", Code.INTERNAL),
            (b"", b"\0\0\0\0\x65", Code.RESOURCE_EXHAUSTED),
            (b"", b"\0\xff\xff\xff\xff", Code.RESOURCE_EXHAUSTED),
        ],
    )
    def test_a_frame_that_is_not_valid_is_refused(self, encoding, data, code):
        """Examples: a flag without a meaning, bytes that cannot be decompressed, a length over the bound."""
        with pytest.raises(RefusedError) as caught:
            Deframer(100, encoding).feed(data)
        assert caught.value.status.code == code

    def test_an_end_amid_a_message_is_refused(self):
        """A client may stop in the middle of a message."""
        deframer = Deframer(100)
        assert deframer.feed(wire.frame(b"one") + b"\0\0\0\0") == [b"one"]
        with pytest.raises(RefusedError):
            deframer.close()


class TestCompression:
    """Compressed messages."""

    @pytest.mark.parametrize(("encoding", "pack"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
    def test_compressed_messages_come_out_as_such(self, encoding, pack):
        """Others beside them may be uncompressed: the flag decides."""
        packed = pack(b"x" * 90)
        data = b"\1" + len(packed).to_bytes(4, "big") + packed + wire.frame(b"plain")
        first, second = Deframer(100, encoding).feed(data)
        assert (first.raw, first.window_bits) == (packed, WINDOW_BITS[encoding])
        assert second == b"plain"

    def test_an_unknown_encoding_is_unimplemented(self):
        """The error names the known encodings."""
        with pytest.raises(RefusedError) as caught:
            Deframer(100, b"snappy")
        assert caught.value.status.code == Code.UNIMPLEMENTED
        assert "gzip" in caught.value.status.message


class TestTimeouts:
    """The header grpc-timeout."""

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            (b"1H", 3600),
            (b"2M", 120),
            (b"3S", 3),
            (b"4m", 0.004),
            (b"5u", 5e-6),
            (b"6n", 6e-9),
            (b"99999999S", 99999999.0),
        ],
    )
    def test_timeouts(self, text, seconds):
        """Every unit of the protocol is understood."""
        assert wire.timeout_seconds(text) == pytest.approx(seconds)

    def test_no_timeout_is_none(self):
        """A call without the header has no deadline."""
        assert wire.timeout_seconds(None) is None

    @pytest.mark.parametrize("text", [b"", b"S", b"1", b"1s", b"-1S", b"123456789S", b"1.5S", b"1 S", b"1SS"])
    def test_a_timeout_that_is_not_valid(self, text):
        """The call is refused, as its client would wait for a deadline that never comes."""
        with pytest.raises(RefusedError) as caught:
            wire.timeout_seconds(text)
        assert caught.value.status.code == Code.INTERNAL


class TestStatuses:
    """Statuses as headers."""

    @given(st.integers(1, 16), st.text(max_size=80), st.binary(max_size=50))
    def test_a_status_survives_its_headers(self, code, message, details):
        """Any code, message and details come back from visible ASCII."""
        found = dict(wire.trailers(Status(code, message, details)))
        assert all(0x20 <= byte < 0x7F for value in found.values() for byte in value)
        assert int(found[b"grpc-status"]) == code
        message_found = urllib.parse.unquote_to_bytes(found[b"grpc-message"]).decode()
        assert message_found == message.encode("utf-8", "replace").decode()
        packed = found.get(b"grpc-status-details-bin", b"")
        assert base64.b64decode(packed + b"=" * (-len(packed) % 4)) == details

    @pytest.mark.parametrize(("pushback", "header"), [(None, None), (-1, b"-1"), (0, b"0"), (1250, b"1250")])
    def test_a_status_may_say_when_to_repeat_the_call(self, pushback, header):
        """There is a header only if the status has a pushback."""
        found = dict(wire.trailers(Status(14, "later", b"", pushback)))
        assert found.get(b"grpc-retry-pushback-ms") == header

    def test_ok_is_its_code_alone(self):
        """A call without an error has neither message nor details."""
        assert wire.trailers(None) == [(b"grpc-status", b"0")]
