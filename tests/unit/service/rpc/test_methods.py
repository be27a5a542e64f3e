"""Messages out of bytes."""

import pytest
from google.protobuf.wrappers_pb2 import Int64Value

from service.errors import Reason, StreamcellError
from service.rpc.methods import parse


def test_parse_refuses_bytes_that_are_no_message():
    """Bytes that cannot be parsed are INVALID_ARGUMENT, and the error names the message that was expected."""
    with pytest.raises(StreamcellError, match=r"google\.protobuf\.Int64Value") as caught:
        parse(Int64Value, b"\xff\xff")
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert parse(Int64Value, Int64Value(value=3).SerializeToString()).value == 3
