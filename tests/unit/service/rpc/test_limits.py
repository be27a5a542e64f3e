"""The bound on a message."""

import pytest

from service.errors import Reason, StreamcellError
from service.rpc.limits import check_message_size


def test_a_message_at_the_bound_is_taken_and_a_larger_one_is_refused():
    """The error names the bound."""
    check_message_size(b"x" * 100, 100)
    with pytest.raises(StreamcellError) as caught:
        check_message_size(b"x" * 101, 100)
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE
    assert caught.value.metadata == {"max_message_bytes": "100"}
