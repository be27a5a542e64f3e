"""Random changes of inputs: bytes, texts, and protobuf messages by their fields. All chance is passed in."""

import struct

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import DecodeError

T0 = 1_700_000_000 * 10**9
WHOLE = [0, 1, 2, 3, 5, 255, -1, T0, T0 + 1, (1 << 31) - 1, -(1 << 31), (1 << 32) - 1, 1 << 40, 1 << 62]
WHOLE += [(1 << 63) - 1, -(1 << 63), (1 << 64) - 1]
FLOATS = [
    0.0,
    -0.0,
    0.5,
    1.0,
    -2.0,
    1e-40,
    3e38,
    -3e38,
    1e39,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
]
IDS = ["live", "timed", "durable", "stored", "theirs", "new", "gone"]
TEXTS = [
    *IDS,
    "recurrence",
    "timed",
    "1",
    "2",
    "x",
    "y",
    "time",
    "FP32",
    "INT64",
    "sequence_id",
    "step_index",
]
TEXTS += ["", " ", "ü\n", "x" * 129, "a/b", "\0", "grpc.health.v1.Health", "streamcell.v1.StreamcellService"]
BITS = {  # by cpp_type: bits, and whether there is a sign
    Field.CPPTYPE_INT32: (32, True), Field.CPPTYPE_UINT32: (32, False),
    Field.CPPTYPE_INT64: (64, True), Field.CPPTYPE_UINT64: (64, False), Field.CPPTYPE_ENUM: (31, False),
}  # fmt: skip


def of_bytes(raw, chance):
    """Returns bytes with one to three changes: a byte or a number set, a part cut, repeated or moved."""
    found = bytearray(raw)
    for _ in range(chance.randint(1, 3)):
        at = chance.randint(0, len(found))
        end = min(len(found), at + chance.choice([1, 1, 2, 4, 8, 32]))
        kind = chance.randrange(6)
        if kind == 0:
            found[at:end] = chance.randbytes(end - at)
        elif kind == 1:
            del found[at:end]
        elif kind == 2:
            found[at:at] = found[at:end]
        elif kind == 3:
            found[at : at + 4] = struct.pack(
                "<f", chance.choice([x for x in FLOATS if not 1e38 < abs(x) < 1e309])
            )
        elif kind == 4:
            size = chance.choice([1, 2, 4, 8])
            found[at : at + size] = (chance.choice(WHOLE) % (1 << 8 * size)).to_bytes(size, "little")
        elif found:
            at %= len(found)
            found[at] ^= 1 << chance.randrange(8)
    return bytes(found)


def of_text(text, chance, parts):
    """Returns a text with one to three changes: a part put in, or cut, or in another's place."""
    for _ in range(chance.randint(1, 3)):
        at = chance.randint(0, len(text))
        end = min(len(text), at + chance.choice([0, 0, 1, 1, 4, 16]))
        text = text[:at] + chance.choice([*parts, ""]) + text[end:]
    return text


def of_message(message_type, raw, chance):
    """Returns the bytes of a message with one to three fields changed; other bytes are changed as bytes."""
    try:
        message = message_type.FromString(raw)
    except DecodeError:
        return of_bytes(raw, chance)
    for _ in range(chance.randint(1, 3)):
        _change(message, chance)
    return message.SerializeToString()


def _change(message, chance):
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    present = [field for field, _ in message.ListFields()]
    field = chance.choice(present if present and chance.random() < 0.5 else fields)
    if chance.random() < 0.15:
        message.ClearField(field.name)
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        _change_map(getattr(message, field.name), field.message_type, chance)
    elif field.is_repeated:
        _change_list(getattr(message, field.name), field, chance)
    elif field.message_type is not None:
        part = getattr(message, field.name)
        part.SetInParent()
        _change(part, chance)
    else:
        setattr(message, field.name, _value(field, chance))


def _change_list(values, field, chance):
    if values and chance.random() < 0.4:
        del values[chance.randrange(len(values))]
    elif field.message_type is None:
        values.extend([_value(field, chance)] * chance.choice([1, 1, 2, 3]))
    elif values and chance.random() < 0.7:
        _change(chance.choice(values), chance)
    else:
        values.add().CopyFrom(chance.choice(values)) if values else _change(values.add(), chance)


def _change_map(entries, entry_type, chance):
    key, value = entry_type.fields_by_name["key"], entry_type.fields_by_name["value"]
    chosen = chance.choice([*entries, _value(key, chance)])
    if value.message_type is None:
        entries[chosen] = _value(value, chance)
    else:
        _change(entries[chosen], chance)


def _value(field, chance):
    kind = field.cpp_type
    if kind in BITS:
        bits, is_signed = BITS[kind]
        value = chance.choice([*WHOLE, chance.getrandbits(6)]) % (1 << bits)
        return value - (1 << bits) if is_signed and value >> (bits - 1) else value
    if kind in (Field.CPPTYPE_FLOAT, Field.CPPTYPE_DOUBLE):
        return chance.choice([x for x in FLOATS if not 3.5e38 < abs(x) < 1e309])
    if kind == Field.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if field.type == Field.TYPE_BYTES:
        floats = [
            chance.choice([0.5, 1.0, 3e38, float("nan")]) for _ in range(chance.choice([0, 1, 2, 2, 4, 6]))
        ]
        return struct.pack(f"<{len(floats)}f", *floats) + chance.randbytes(chance.choice([0, 0, 0, 1, 8]))
    return chance.choice(TEXTS)
