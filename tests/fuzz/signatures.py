"""Signed snapshots: only what a key signed comes through, to the bit, and is decoded as any snapshot is.

An input is a byte of flags and bytes. With SEALED the signature is made right, as whoever has the key could;
with KEYLESS the server has no key. The vectors of tests/vectors are the seeds.
"""

import hashlib
import hmac
import pathlib
import tempfile

from service.engine.snapshot import SnapshotError
from service.engine.snapshot_keys import SnapshotKeys
from tests.fuzz import mutations, snapshots

SEALED, KEYLESS = 1, 2
VECTORS = pathlib.Path(__file__).parents[1] / "vectors"
KEYS = [bytes(range(32)), bytes(range(64, 128))]
HEAD, WHOLE_HEAD = 16, 48


def _holder():
    with tempfile.NamedTemporaryFile("w", prefix="streamcell-fuzz-") as file:
        file.write("".join(f"{key.hex()}\n" for key in KEYS))
        file.flush()
        return SnapshotKeys(file.name)


HOLDER, NO_KEYS = _holder(), SnapshotKeys()


def signed_by(key, head, inner):
    """Returns the signature of docs/snapshots.md."""
    return hmac.new(key, b"streamcell snapshot" + head + inner, hashlib.sha256).digest()


def key_id(key):
    """Returns a key's id."""
    return hmac.new(key, b"streamcell snapshot key id", hashlib.sha256).digest()[:8]


def sealed(raw):
    """Returns bytes with the signature of the first key in its place."""
    head = raw[: HEAD - 8] + key_id(KEYS[0])
    return head + signed_by(KEYS[0], head, raw[WHOLE_HEAD:]) + raw[WHOLE_HEAD:]


def run(raw):
    """Verifies, checks what came through against a computation of its own, and decodes it."""
    flags, record = (raw[0], raw[1:]) if raw else (0, b"")
    if flags & SEALED and len(record) >= WHOLE_HEAD:
        record = sealed(record)
    holder = NO_KEYS if flags & KEYLESS else HOLDER
    inner, refusal = None, ""
    try:
        inner = holder.verified(record)
    except SnapshotError as error:
        refusal = str(error)
    if inner is None:
        assert "\n" not in refusal
        assert not flags & KEYLESS or record.startswith(b"SCSS")
        return
    if holder is HOLDER:
        head, mac = record[:HEAD], record[HEAD:WHOLE_HEAD]
        assert head[:8] == b"SCSS\1\0\0\0"
        assert any(head[8:] == key_id(key) and mac == signed_by(key, head, inner) for key in KEYS)
    assert record in (inner, record[:WHOLE_HEAD] + inner)
    assert HOLDER.verified(HOLDER.sign(inner)) == inner
    snapshots.check_decoding(inner)


def mutate(raw, chance):
    """Changes bytes of the head or anywhere, and sometimes the flags."""
    flags, record = (raw[0], raw[1:]) if raw else (SEALED, b"")
    if chance.random() < 0.2:
        flags ^= chance.choice([SEALED, KEYLESS])
    if chance.random() < 0.4:
        head = mutations.of_bytes(record[:WHOLE_HEAD], chance)
        return bytes([flags]) + head + record[WHOLE_HEAD:]
    return bytes([flags]) + mutations.of_bytes(record, chance)


def seeds():
    """Returns signed and bare snapshots, of both keys, to servers with and without keys."""
    found = []
    for path in sorted(VECTORS.glob("snapshot-v*.hex")):
        inner = bytes.fromhex(path.read_text())
        head = b"SCSS\1\0\0\0" + key_id(KEYS[1])
        records = [inner, HOLDER.sign(inner), head + signed_by(KEYS[1], head, inner) + inner]
        found += [bytes([flags]) + record for record in records for flags in (0, SEALED, KEYLESS)]
    return found
