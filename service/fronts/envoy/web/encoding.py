"""Messages and errors as the web protocols encode them: bytes, JSON, and Connect's errors.

Messages that arrive as bytes stay bytes. google.protobuf converts JSON; a large message is converted in a
thread, so that streams go on meanwhile. Does not know calls.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar

from connectrpc.code import Code
from connectrpc.codec import Codec
from connectrpc.compat import google_protobuf_json_codec
from connectrpc.errors import ConnectError, ErrorDetail
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.json_format import MessageToDict, ParseError
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status as StatusMessage
from protobuf import wkt

from service import errors
from service.errors import StreamcellError
from service.rpc.statuses import Status

_LARGE_BYTES = 16 << 10  # from here on a conversion takes milliseconds
_MAX_CAUSE = 300  # characters of the parser's message in an error
# An unknown field is an error: a misspelt step_index must not be a step without one.
_JSON: Codec[Message, Message] = google_protobuf_json_codec(ignore_unknown_fields=False)
_CODES = {
    1: Code.CANCELED, 3: Code.INVALID_ARGUMENT, 4: Code.DEADLINE_EXCEEDED, 5: Code.NOT_FOUND,
    6: Code.ALREADY_EXISTS, 8: Code.RESOURCE_EXHAUSTED, 9: Code.FAILED_PRECONDITION, 10: Code.ABORTED,
    11: Code.OUT_OF_RANGE, 12: Code.UNIMPLEMENTED, 13: Code.INTERNAL, 14: Code.UNAVAILABLE,
    16: Code.UNAUTHENTICATED,
}  # fmt: skip
_DETAILS = {
    each.DESCRIPTOR.full_name: each for each in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo)
}

_Result = TypeVar("_Result")


class EncodedRequest:
    """A request as the client sent it: its bytes, and whether they are JSON."""

    __slots__ = ("is_json", "raw")

    def __init__(self, raw: bytes, *, is_json: bool) -> None:
        self.raw = raw
        self.is_json = is_json


class PassThroughCodec:
    """A codec that converts nothing: the methods decode their requests and encode their answers."""

    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        """Returns the codec's name, as in content types."""
        return self._name

    def encode(self, message: bytes) -> bytes:
        """Returns the bytes."""
        return message

    def decode(self, data: bytes | bytearray, message_class: Any) -> EncodedRequest:
        """Returns the bytes, and whether they are JSON."""
        return EncodedRequest(bytes(data), is_json=self._name == "json")


CODECS = [PassThroughCodec("proto"), PassThroughCodec("json")]


async def from_json(text: bytes, message_type: type[Message]) -> bytes:
    """Returns the bytes of the message that a JSON text describes.

    Raises:
        StreamcellError: INVALID_ARGUMENT, the text does not describe a message of this type.
    """
    try:
        return await _run(len(text), lambda: _JSON.decode(text, message_type).SerializeToString())
    except (ParseError, ValueError, RecursionError) as error:
        raise _not_json(message_type, error) from None


async def to_json(raw: bytes, message_type: type[Message]) -> bytes:
    """Returns the JSON text of a message."""
    return await _run(len(raw), lambda: _JSON.encode(message_type.FromString(raw)))


async def _run(num_bytes: int, convert: Callable[[], _Result]) -> _Result:
    """Converts a small message here and a large message in a thread."""
    return convert() if num_bytes < _LARGE_BYTES else await asyncio.to_thread(convert)


def _not_json(message_type: type[Message], error: Exception) -> StreamcellError:
    cause = " ".join(str(error).split())[:_MAX_CAUSE]
    name = message_type.DESCRIPTOR.full_name
    return errors.invalid_argument("message", f"not a {name} in JSON: {cause}")


class _Detail(ErrorDetail):
    """An error's detail with a form that people can read."""

    def __init__(self, packed: AnyMessage) -> None:
        super().__init__(wkt.Any(type_url=packed.type_url, value=packed.value))
        self._packed = packed

    def value(self, *_: Any) -> Any:
        """Returns the detail's JSON as a Struct, which Connect's errors show as `debug`."""
        message_type = _DETAILS.get(self.type_name)
        if message_type is None:
            return None
        shown = MessageToDict(message_type.FromString(self._packed.value))
        return wkt.Struct.from_json(json.dumps(shown))


def connect_error(status: Status) -> ConnectError:
    """Returns a call's status as the exception that the library expects."""
    details = StatusMessage.FromString(status.details).details
    return ConnectError(_CODES[status.code], status.message, [_Detail(each) for each in details])
