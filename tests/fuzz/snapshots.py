"""Snapshots: what is accepted re-encodes to the same, and never makes a later call fail with INTERNAL.

An input is a byte of flags and a snapshot. With SEALED its checksum is made right, as a forger would.
"""

import zlib

import numpy as np
from streamcell.v1 import streamcell_pb2 as pb

from service.engine import snapshot
from service.engine.snapshot import SnapshotError
from tests.fake_store import Row
from tests.fuzz import mutations
from tests.fuzz.world import World

SEALED, STORED, OWN_ID = 1, 2, 4
MEANT = ("flags", "next_step", "last_time", "reply_start", "session_id")  # not only sizes, which must match
WORLD = World()


def sealed(raw):
    """Returns a snapshot with its checksum made right."""
    return raw[:-4] + zlib.crc32(raw[:-4]).to_bytes(4, "little")


def run(raw):
    """Decodes, and restores the snapshot or finds it in the store; uses what was accepted."""
    flags, record = (raw[0], raw[1:]) if raw else (0, b"")
    if flags & SEALED and len(record) > 4:
        record = sealed(record)
    check_decoding(record)

    async def behaviour(world):
        if flags & STORED:
            world.store.rows["\0found"] = Row(1, "", 0.0, record)
            opened = pb.OpenSessionRequest(session_id="found", mode=pb.OPEN_MODE_RESUME)
            await world.answer("OpenSession", opened)
        else:
            request = pb.RestoreSessionRequest(snapshot=record, session_id="" if flags & OWN_ID else "new")
            await world.answer("RestoreSession", request)

    WORLD.run(behaviour)


def check_decoding(record):
    """Checks that a snapshot is refused in words, or means the same once it is encoded again."""
    try:
        found = snapshot.decode(record)
    except SnapshotError:
        return
    again = snapshot.decode(snapshot.encode_one(found))
    assert (again.session_id, again.model, again.is_durable) == (
        found.session_id,
        found.model,
        found.is_durable,
    )
    assert again.state.tobytes() == found.state.tobytes()
    for name in ("next_step", "last_time", "reply_start", "reply_y", "reply_prints"):
        assert getattr(again.progress, name).tobytes() == getattr(found.progress, name).tobytes()
    try:
        snapshot.decode_foreign(record)
    except SnapshotError:
        assert not np.isfinite(found.state).all()


def mutate(raw, chance):
    """Changes one field of the head, or bytes anywhere, and sometimes the flags."""
    flags, record = (raw[0], bytearray(raw[1:])) if raw else (SEALED, bytearray())
    if chance.random() < 0.1:
        flags ^= chance.choice([SEALED, STORED, OWN_ID])
    if len(record) >= snapshot._HEAD.itemsize and chance.random() < 0.7:
        name = chance.choice(MEANT if chance.random() < 0.7 else list(snapshot._HEAD.fields))
        dtype, offset = snapshot._HEAD.fields[name][:2]
        value = chance.choice([chance.choice(mutations.WHOLE), chance.getrandbits(8)]) % (1 << 64)
        size = min(dtype.itemsize, 8)
        record[offset : offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    else:
        record = mutations.of_bytes(record, chance)
    return bytes([flags]) + bytes(record)


def seeds():
    """Returns snapshots of sessions of both models, new and with steps."""
    found = []

    async def behaviour(world):
        for name in ("live", "timed", "durable"):
            raw = (
                await world.served.ask("SnapshotSession", pb.SnapshotSessionRequest(session_id=name))
            ).snapshot
            found.extend(bytes([flags]) + raw for flags in (SEALED, SEALED | STORED, SEALED | OWN_ID))

    WORLD.run(behaviour)
    return found
