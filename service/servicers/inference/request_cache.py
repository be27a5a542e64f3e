"""Parameters of requests that were read before, found by the bytes of a request.

Most requests of a sequence differ in their id and their input row alone, and to read all of a request costs
more than its step does. The cache's key is the caller and the request's bytes without its id and its row. If
the key is known, only the id and the row are read. Does not know what the other bytes mean.
"""

import math
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from service.servicers.inference.parameters import RequestParameters

_MAX_ENTRIES = 65_536
_MAX_KEY_BYTES = 512  # with the bound above: some tens of MB at most
_ID, _ROWS = "id", "raw_input_contents"


class RequestCache:
    """The parameters of requests, by caller and by the request's bytes without id and row."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, bytes], RequestParameters] = {}

    def find(self, principal: str, raw: bytes) -> tuple[RequestParameters, str, bytes] | None:
        """Returns a request's parameters, id and row; None if the request is to be read in full.

        The key is not in the cache then, or the row has a wrong size or a value that is not finite.
        """
        parts = _split(raw)
        if parts is None:
            return None
        rest, request_id, row = parts
        parameters = self._entries.get((principal, rest))
        if parameters is None:
            return None
        layout = parameters.engine.row
        is_right = len(row) == layout.size and math.isfinite(sum(layout.unpack(row)))
        return (parameters, request_id, row) if is_right else None

    def add(self, principal: str, raw: bytes, parameters: RequestParameters) -> None:
        """Adds the parameters of a request with one row, unless a step index makes it unlike any other."""
        parts = _split(raw) if parameters.first_index < 0 else None
        if parts is None or len(parts[0]) > _MAX_KEY_BYTES:
            return
        if len(self._entries) == _MAX_ENTRIES:
            self._entries.clear()
        self._entries[principal, parts[0]] = parameters


def _split(raw: bytes) -> tuple[bytes, str, bytes] | None:
    """Returns a request's other bytes, id and row; None for bytes that are no request with one raw input."""
    try:
        request = _IdAndRows.FromString(raw)
    except DecodeError:
        return None
    rows = request.raw_input_contents
    if len(rows) != 1:
        return None
    request_id, row = request.id, rows[0]
    request.ClearField(_ID)
    request.ClearField(_ROWS)
    return request.SerializeToString(), request_id, row


def _id_and_rows_type() -> Any:
    """Returns a message type with two of ModelInferRequest's fields; to it all other fields are unknown.

    A message keeps unknown fields as the bytes that came, and writes them back. Equal bytes say the same.
    """
    file = descriptor_pb2.FileDescriptorProto(name="parts.proto", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    file.message_type.add(name="Parts").field.extend(
        [
            field(name=_ID, number=3, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL),
            field(name=_ROWS, number=7, type=field.TYPE_BYTES, label=field.LABEL_REPEATED),
        ]
    )
    pool = descriptor_pool.DescriptorPool()  # reflection shows the types of the default pool
    pool.Add(file)
    found: type[Message] = message_factory.GetMessageClass(pool.FindMessageTypeByName("Parts"))
    return found


_IdAndRows = _id_and_rows_type()
