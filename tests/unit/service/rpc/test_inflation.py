"""Compressed messages: bounds on what they inflate to, turns, and how they are recognised."""

import gzip
import zlib

import pytest
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from streamcell.inference import open_inference_pb2
from streamcell.v1 import streamcell_pb2

from service.errors import Code
from service.rpc.inflation import WINDOW_BITS, Inflation, Packed, recognised
from service.rpc.request_bytes import RequestBytes
from service.rpc.statuses import RefusedError

MAX_BYTES = 1 << 20  # as many as one turn has


class Rig:
    """An inflation whose time and turns the test controls."""

    def __init__(self):
        self.now = 0.0
        self.request_bytes = RequestBytes(1000)
        self.later = []
        self.inflation = Inflation(
            MAX_BYTES,
            self.request_bytes,
            lambda seconds, callback: self.later.append((seconds, callback)),
            clock=lambda: self.now,
        )
        self.found = []

    def inflate(self, packed):
        """Begins with a message, whose outcome comes into `found`."""
        self.inflation.inflate(packed, self.found.append)

    def pass_time(self):
        """Lets the time of a turn pass, and calls what was to be called then."""
        ((seconds, callback),) = self.later
        self.later.clear()
        self.now += seconds
        callback()


@pytest.fixture
def rig():
    """The rig."""
    return Rig()


def packed(message, encoding=b"gzip"):
    """Returns a compressed message."""
    pack = {b"gzip": gzip.compress, b"deflate": zlib.compress}[encoding]
    return Packed(pack(message), WINDOW_BITS[encoding])


class TestBounds:
    """One message."""

    @pytest.mark.parametrize("encoding", WINDOW_BITS)
    def test_a_message_inflates(self, rig, encoding):
        """A message of exactly the bound does, at once."""
        rig.inflate(packed(b"x" * MAX_BYTES, encoding))
        assert rig.found == [b"x" * MAX_BYTES]

    def test_a_message_that_inflates_to_more_than_the_bound_is_refused(self, rig):
        """Inflating stops at the bound, and the refusal counts as that much work."""
        rig.inflate(packed(bytes(50 * MAX_BYTES)))
        assert rig.found[0].status.code == Code.RESOURCE_EXHAUSTED
        assert "larger than max" in rig.found[0].status.message
        rig.inflate(packed(b"next"))
        assert len(rig.found) == 1

    @pytest.mark.parametrize("raw", [gzip.compress(b"x" * 90, mtime=0)[:-9], b"\x1f\x8bx", b"x", b""])
    def test_a_message_that_does_not_inflate_is_refused(self, rig, raw):
        """Half of a compressed message is not a message."""
        rig.inflate(Packed(raw, WINDOW_BITS[b"gzip"]))
        assert isinstance(rig.found[0], RefusedError)
        assert rig.found[0].status.code == Code.INTERNAL


class TestTurns:
    """Many messages."""

    def test_messages_wait_for_their_turns_in_order(self, rig):
        """A turn inflates until its bytes are used up; the next one comes after a pause."""
        half = MAX_BYTES // 2
        for size in (half, half, half, half, 1):
            rig.inflate(packed(bytes(size)))
        assert [len(each) for each in rig.found] == [half, half]
        rig.pass_time()
        assert [len(each) for each in rig.found] == [half] * 4
        rig.pass_time()
        assert [len(each) for each in rig.found] == [half] * 4 + [1]
        assert not rig.later

    def test_the_pause_begins_when_the_work_is_done(self, rig):
        """A message that takes longer than a turn to inflate still lets others have a turn."""

        def slow(found):
            rig.found.append(found)
            rig.now += 1.0

        rig.inflation._clock = iter([0.0, 5.0, 5.0]).__next__  # before the work, after it, and at once
        rig.inflation.inflate(packed(bytes(MAX_BYTES)), slow)
        rig.inflate(packed(b"next"))
        assert len(rig.found) == 1

    def test_small_messages_never_wait(self, rig):
        """A steady stream of them stays within each turn's bytes."""
        for _ in range(1000):
            rig.inflate(packed(bytes(2000)))
            rig.now += 0.001
        assert len(rig.found) == 1000
        assert not rig.later

    def test_messages_wait_while_unanswered_requests_hold_as_many_bytes_as_may_be(self, rig):
        """They are inflated once there is room."""
        rig.request_bytes.num_bytes = 1000
        rig.inflate(packed(b"a"))
        rig.pass_time()
        assert rig.found == []
        rig.request_bytes.num_bytes = 999
        rig.pass_time()
        assert rig.found == [b"a"]

    def test_a_dropped_message_takes_no_turn(self, rig):
        """Its call has ended, so nobody is called."""
        rig.request_bytes.num_bytes = 1000
        dropped, wanted = packed(bytes(MAX_BYTES)), packed(b"b")
        rig.inflate(dropped)
        rig.inflate(wanted)
        dropped.is_dropped = True
        rig.request_bytes.num_bytes = 0
        rig.pass_time()
        assert rig.found == [b"b"]

    def test_a_fault_in_one_turn_leaves_the_others_theirs(self, rig):
        """The messages behind it are inflated in the next turn."""
        rig.request_bytes.num_bytes = 1000
        rig.inflation.inflate(packed(b"a"), lambda found: 1 / 0)
        rig.inflate(packed(b"b"))
        rig.request_bytes.num_bytes = 0
        with pytest.raises(ZeroDivisionError):
            rig.pass_time()
        rig.pass_time()
        assert rig.found == [b"b"]

    def test_a_reservation_counts_the_most_that_its_bytes_may_become(self, rig):
        """So whoever inflates for itself takes turns with the others."""
        turns = []
        for _ in range(2):
            rig.inflation.reserve(MAX_BYTES // 1032 + 1, lambda: turns.append(rig.now))
        assert turns == [0.0]
        rig.pass_time()
        assert turns == [0.0, 0.01]


class TestRecognition:
    """Compressed messages known by their first bytes."""

    @pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
    @pytest.mark.parametrize("level", range(1, 10))
    def test_compressed_messages_are_recognised(self, rig, pack, level):
        """Whatever the level of compression."""
        found = recognised(pack(b"message" * 9, level))
        rig.inflate(found)
        assert rig.found == [b"message" * 9]

    @pytest.mark.parametrize("raw", [b"", b"\x0a\x01s", b"\x1f", b"x", b"xx", b"\x1f\x8a"])
    def test_other_messages_are_not(self, raw):
        """They are messages as they are."""
        assert recognised(raw) is None

    @pytest.mark.parametrize("raw", [b"x\x9c", b"x\x01\x02", zlib.compress(b"x" * 90)[:-5]])
    def test_what_only_begins_like_zlib_is_a_message_as_it_is(self, rig, raw):
        """A field 15 begins so."""
        rig.inflate(recognised(raw))
        assert rig.found == [raw]

    def test_what_begins_like_gzip_is_no_message(self, rig):
        """No protobuf message does."""
        rig.inflate(recognised(b"\x1f\x8b\x08"))
        assert rig.found[0].status.code == Code.INTERNAL


@pytest.mark.parametrize(
    "file", [streamcell_pb2, open_inference_pb2, health_pb2, reflection_pb2, channelz_pb2]
)
def test_no_request_has_the_field_that_begins_as_zlib_does(file):
    """A request with a field 15 would have to be told from a compressed one by more than its first bytes."""
    methods = [method for service in file.DESCRIPTOR.services_by_name.values() for method in service.methods]
    assert methods
    assert all(15 not in method.input_type.fields_by_number for method in methods)
