"""Messages in JSON: any text is a message or an error, and size makes no difference."""

import asyncio
import json

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from streamcell.v1 import streamcell_pb2 as pb

from service.errors import StreamcellError
from service.fronts.envoy.web.encoding import from_json, to_json

NAMES = [*pb.StepRequest.DESCRIPTOR.fields_by_name, "sessionId", "?"]
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner),
    max_leaves=8,
)


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=60), VALUES.map(lambda value: json.dumps(value).encode())))
def test_any_text_is_a_message_or_an_invalid_argument(text):
    """No text raises anything but INVALID_ARGUMENT, with a short message."""
    code, message = 0, ""
    try:
        pb.StepRequest.FromString(asyncio.run(from_json(text, pb.StepRequest)))
    except StreamcellError as error:
        code, message = error.code, error.message
    assert code in (0, 3)
    assert len(message) < 500


@pytest.mark.parametrize("size", [10, 100_000])
async def test_large_and_small_messages_are_converted_alike(size):
    """A message converted in the loop or in a thread, and back, is the same message."""
    raw = StringValue(value="x" * size).SerializeToString()
    assert await from_json(await to_json(raw, StringValue), StringValue) == raw
