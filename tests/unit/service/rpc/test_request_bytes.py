"""The bytes of large requests: a sum over all calls, and one stream's large messages."""

import pytest

from service.rpc.request_bytes import LARGE_BYTES, LargeMessages, RequestBytes
from tests.unit.service.rpc.rigs import RouterRig


def test_the_sum_is_full_at_its_bound():
    """Bytes count within the block, whatever ends it."""
    total = RequestBytes(10)

    def fail():
        with total.held(10):
            assert total.is_full
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert (total.num_bytes, total.is_full) == (0, False)


def test_large_messages_count_until_as_many_answers_were_sent():
    """Answers count in the order of the messages, small ones among them."""
    total = RequestBytes(100)
    large = LargeMessages(total)
    large.add(2, 30)
    large.add(3, 40)
    large.release(1)
    assert (large.num_bytes, total.num_bytes) == (70, 70)
    large.release(2)
    assert (large.num_bytes, total.num_bytes) == (40, 40)
    large.add(9, 5)
    large.release_all()
    large.release(9)
    assert (large.num_bytes, total.num_bytes) == (0, 0)


@pytest.fixture
def rig():
    """A router that takes large messages, and many of them."""
    return RouterRig(max_message_bytes=2 * LARGE_BYTES, max_stream_messages=100)


class TestStreams:
    """A stream's large messages, over a router."""

    async def test_a_stream_counts_its_large_messages_until_they_are_answered(self, rig):
        """Small messages do not count."""
        stream, _ = rig.open()
        total = rig.router.request_bytes
        stream.receive(bytes(LARGE_BYTES - 1))
        assert total.num_bytes == 0
        stream.receive(bytes(LARGE_BYTES))
        assert total.num_bytes == LARGE_BYTES
        stream.send(b"a")
        assert total.num_bytes == LARGE_BYTES
        stream.send(b"b")
        assert total.num_bytes == 0

    async def test_a_stream_is_full_while_its_large_messages_are_four_times_the_largest(self, rig):
        """There is room once one of them is answered, sent or not."""
        stream, _ = rig.open()
        for _ in range(4):
            assert not stream.is_full
            stream.receive(bytes(2 * LARGE_BYTES))
        assert stream.is_full
        stream.send(b"a")
        assert not stream.is_full

    @pytest.mark.parametrize("end", ["cancel", "end", "close"])
    async def test_a_stream_that_ends_counts_no_more(self, rig, end):
        """However it ends."""
        stream, _ = rig.open()
        stream.receive(bytes(LARGE_BYTES))
        if end == "close":
            rig.router.close(stream)
        else:
            getattr(stream, end)()
        assert rig.router.request_bytes.num_bytes == 0
