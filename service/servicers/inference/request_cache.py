"""Requests whose like was read before, recognised by their bytes: their id and their row alone are read anew.

A sequence's requests mostly differ in nothing else, and to read all of one costs more than its step does. A
request's *head* is all but these two. Does not know what a head means.
"""

import math
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from service.servicers.inference.parameters import Ask

_MAX_HEADS = 65_536
_MAX_HEAD_BYTES = 512  # with the bound above: some tens of MB at most
_ID, _ROWS = "id", "raw_input_contents"


class Heads:
    """What requests ask that were read, by caller and head."""

    def __init__(self) -> None:
        self._asks: dict[tuple[str, bytes], Ask] = {}

    def find(self, principal: str, raw: bytes) -> tuple[Ask, str, bytes] | None:
        """Returns what a request asks, its id and its row; None where the request is to be read.

        Its like is not known then, or its row is wrong.
        """
        parts = _parts_of(raw)
        if parts is None:
            return None
        head, name, row = parts
        ask = self._asks.get((principal, head))
        if ask is None:
            return None
        kind = ask.engine.row
        is_right = len(row) == kind.size and math.isfinite(sum(kind.unpack(row)))
        return (ask, name, row) if is_right else None

    def learn(self, principal: str, raw: bytes, ask: Ask) -> None:
        """Remembers what a request asks that has one row, and no index: those all differ."""
        parts = _parts_of(raw) if ask.first_index < 0 else None
        if parts is None or len(parts[0]) > _MAX_HEAD_BYTES:
            return
        if len(self._asks) == _MAX_HEADS:
            self._asks.clear()
        self._asks[principal, parts[0]] = ask


def _parts_of(raw: bytes) -> tuple[bytes, str, bytes] | None:
    """Returns a request's head, id and row; None where it has not one entry of raw contents, or is none."""
    try:
        request = _Parts.FromString(raw)
    except DecodeError:
        return None
    rows = request.raw_input_contents
    if len(rows) != 1:
        return None
    name, row = request.id, rows[0]
    request.ClearField(_ID)
    request.ClearField(_ROWS)
    return request.SerializeToString(), name, row


def _parts_type() -> Any:
    """Returns a message of a ModelInferRequest's two fields, to which all others are unknown.

    Unknown fields are kept as they came and written so: where they are the same bytes, they say the same.
    """
    file = descriptor_pb2.FileDescriptorProto(name="parts.proto", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    file.message_type.add(name="Parts").field.extend(
        [
            field(name=_ID, number=3, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL),
            field(name=_ROWS, number=7, type=field.TYPE_BYTES, label=field.LABEL_REPEATED),
        ]
    )
    pool = descriptor_pool.DescriptorPool()  # of its own: the default one's are what reflection shows
    pool.Add(file)
    found: type[Message] = message_factory.GetMessageClass(pool.FindMessageTypeByName("Parts"))
    return found


_Parts = _parts_type()
