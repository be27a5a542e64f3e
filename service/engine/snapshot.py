"""A session as bytes: versioned, checksummed, the same for the store and for clients (docs/snapshots.md).

Owns the format. Does not know where the bytes go, nor the engine that they come from.
"""

import dataclasses
import hashlib
import json
import zlib

import numpy as np
import numpy.typing as npt

from service.arrays import Flags, Float32s
from service.engine.progress import Progress
from service.runtime.artifact import DIGEST_BYTES
from service.runtime.manifest import Manifest

MAGIC = b"SCSN"
VERSION = 1
_ID_BYTES = 128  # as long as a session id may be
_CHECKSUM_BYTES = 4
_IS_DURABLE = 1

# All numbers are little-endian; what follows the head has the sizes that the head says.
_HEAD = np.dtype(
    [
        ("magic", "S4"),
        ("version", "<u2"),
        ("flags", "<u2"),
        ("state_size", "<u4"),
        ("num_outputs", "<u4"),
        ("num_replies", "<u4"),
        ("name_bytes", "<u2"),
        ("version_bytes", "<u2"),
        ("next_step", "<i8"),
        ("last_time", "<i8"),
        ("kept_from", "<i8"),
        ("digest", f"V{DIGEST_BYTES}"),
        ("layout", f"V{DIGEST_BYTES}"),
        ("session_id", f"S{_ID_BYTES}"),
    ]
)
_LARGEST = 1 << 28  # of any size in a head: far above every model, and small enough to multiply


class SnapshotError(ValueError):
    """These bytes are no snapshot that can be used; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """The model that sessions run on, as far as their bytes are concerned.

    `digest`: of the artifact's file; `layout`: of what its state row, inputs and outputs mean.
    """

    name: str
    version: str
    digest: bytes
    layout: bytes
    state_size: int
    num_outputs: int

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """One session, read from bytes; `progress` holds one."""

    session_id: str
    model: Model
    is_durable: bool
    progress: Progress
    state: Float32s  # (S,)


def layout_of(manifest: Manifest) -> bytes:
    """Returns the digest of what a state row, inputs and outputs mean: of equal ones, states can move."""
    meaning = [
        [[part.name, part.offset, part.size] for part in manifest.state_layout],
        [part.name for part in manifest.inputs],
        [part.name for part in manifest.outputs],
        manifest.uses_time,
    ]
    return hashlib.blake2b(json.dumps(meaning).encode(), digest_size=DIGEST_BYTES).digest()


def encode(
    model: Model, session_ids: list[str], progress: Progress, states: Float32s, is_durable: Flags
) -> list[bytes]:
    """Returns the snapshots of N sessions of one model, whose states are [N, S]."""
    num_replies = progress.reply_prints.shape[1]
    rows = np.zeros(len(session_ids), _record(model, num_replies))
    head = rows["head"]
    head["magic"], head["version"], head["flags"] = MAGIC, VERSION, is_durable * _IS_DURABLE
    head["state_size"], head["num_outputs"], head["num_replies"] = (
        model.state_size,
        model.num_outputs,
        num_replies,
    )
    name, version = model.name.encode(), model.version.encode()
    head["name_bytes"], head["version_bytes"] = len(name), len(version)
    head["next_step"], head["last_time"] = progress.next_step, progress.last_time
    head["kept_from"] = progress.reply_start
    head["digest"], head["layout"] = np.void(model.digest), np.void(model.layout)
    head["session_id"] = session_ids
    rows["name"], rows["version"] = name, version
    rows["state"], rows["prints"], rows["y"] = states, progress.reply_prints, progress.reply_y
    raw, size = rows.tobytes(), rows.itemsize
    pieces = [raw[at : at + size] for at in range(0, len(raw), size)]
    return [piece + zlib.crc32(piece).to_bytes(_CHECKSUM_BYTES, "little") for piece in pieces]


def encode_one(session: Snapshot) -> bytes:
    """Returns one session's snapshot."""
    is_durable = np.array([session.is_durable])
    return encode(session.model, [session.session_id], session.progress, session.state[None], is_durable)[0]


def decode(raw: bytes) -> Snapshot:
    """Returns the session that bytes hold.

    Raises:
        SnapshotError: they are of something else, of another version, cut off or damaged.
    """
    head = _head(raw)
    model = Model(
        "",
        "",
        head["digest"].tobytes(),
        head["layout"].tobytes(),
        int(head["state_size"]),
        int(head["num_outputs"]),
    )
    sizes = int(head["name_bytes"]), int(head["version_bytes"])
    record = _record(model, int(head["num_replies"]), sizes)
    whole = record.itemsize + _CHECKSUM_BYTES
    if len(raw) != whole:
        raise SnapshotError(f"it has {len(raw)} bytes where {whole} belong")
    if zlib.crc32(raw[:-_CHECKSUM_BYTES]) != int.from_bytes(raw[-_CHECKSUM_BYTES:], "little"):
        raise SnapshotError("its checksum is wrong: it is damaged")
    (row,) = np.frombuffer(raw[:-_CHECKSUM_BYTES], record)
    model = dataclasses.replace(model, name=row["name"].decode(), version=row["version"].decode())
    progress = Progress(
        head["next_step"][None].astype(np.int64),
        head["last_time"][None].astype(np.int64),
        head["kept_from"][None].astype(np.int64),
        row["y"][None].copy(),
        row["prints"][None].copy(),
    )
    is_durable = bool(int(head["flags"]) & _IS_DURABLE)
    return Snapshot(head["session_id"].decode(), model, is_durable, progress, row["state"].copy())


def _head(raw: bytes) -> "np.void":
    if len(raw) < _HEAD.itemsize or raw[:4] != MAGIC:
        raise SnapshotError("it does not begin as a snapshot does")
    head: np.void = np.frombuffer(raw[: _HEAD.itemsize], _HEAD)[0]
    if int(head["version"]) != VERSION:
        raise SnapshotError(f"it is of format version {head['version']}; this server reads {VERSION}")
    sizes = [int(head[name]) for name in ("state_size", "num_outputs", "num_replies")]
    if max(sizes) > _LARGEST or not min(*sizes[1:], head["name_bytes"], head["version_bytes"]):
        raise SnapshotError("its sizes make no sense: it is damaged")
    if sizes[0] + sizes[2] * (2 + sizes[1]) > len(raw):  # what no bytes of this length can hold
        raise SnapshotError(f"{len(raw)} bytes are too few for its sizes: it is cut off")
    return head


def _record(model: Model, num_replies: int, sizes: "tuple[int, int] | None" = None) -> "np.dtype[np.void]":
    name_bytes, version_bytes = sizes or (len(model.name.encode()), len(model.version.encode()))
    fields: npt.DTypeLike = [
        ("head", _HEAD),
        ("name", f"S{name_bytes}"),
        ("version", f"S{version_bytes}"),
        ("state", "<f4", (model.state_size,)),
        ("prints", "<u8", (num_replies,)),
        ("y", "<f4", (num_replies, model.num_outputs)),
    ]
    return np.dtype(fields)
