"""A session as bytes: versioned, checksummed, the same for the store and for clients (docs/snapshots.md).

Owns the format. Does not know where the bytes go, nor engines.
"""

import dataclasses
import hashlib
import json
import zlib

import numpy as np
import numpy.typing as npt

from service.arrays import Flags, Float32s
from service.engine.progress import MAX_TIME_NS, Progress
from service.engine.session_key import ID_RULE, is_session_id
from service.runtime.artifact import DIGEST_BYTES
from service.runtime.manifest import Manifest

MAGIC = b"SCSN"
VERSION = 1
"""The format version that is written. A release that raises it reads the versions before it, too."""
OLDEST_VERSION = 1
"""The oldest format version that is read."""
_READABLE = f"{VERSION}" if OLDEST_VERSION == VERSION else f"{OLDEST_VERSION} to {VERSION}"
MAX_STEPS = 1 << 62
"""The most steps that a snapshot may have: as many again fit into the index of a step."""
_ID_BYTES = 128  # as long as a session id may be
_CHECKSUM_BYTES = 4
_IS_DURABLE = 1

# All numbers are little-endian; the head says the sizes of the fields after it.
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
        ("reply_start", "<i8"),
        ("digest", f"V{DIGEST_BYTES}"),
        ("layout", f"V{DIGEST_BYTES}"),
        ("session_id", f"S{_ID_BYTES}"),
    ]
)
_LARGEST = 1 << 28  # bound of every size in a head: far above any model, and small enough to multiply


class SnapshotError(ValueError):
    """Bytes that are not a usable snapshot; the message says why."""


class NewerVersionError(SnapshotError):
    """A snapshot of a format version that a later release writes: it may be whole, and must stay as it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """The model that a session runs on, as a snapshot describes it.

    `digest` is of the artifact's file, `layout` of what its state row, inputs and outputs mean.
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
    """One session, decoded; `progress` is of this session alone."""

    session_id: str
    model: Model
    is_durable: bool
    progress: Progress
    state: Float32s  # (S,)


def layout_of(manifest: Manifest) -> bytes:
    """Returns a digest of what state row, inputs and outputs mean; states can move between equal layouts."""
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
    """Returns the snapshots of N sessions of one model; states are [N, S]."""
    num_replies = progress.reply_prints.shape[1]
    rows = np.zeros(len(session_ids), _record(model, num_replies))
    head = rows["head"]
    head["magic"], head["version"], head["flags"] = MAGIC, VERSION, is_durable * _IS_DURABLE
    head["state_size"], head["num_outputs"] = model.state_size, model.num_outputs
    head["num_replies"] = num_replies
    name, version = model.name.encode(), model.version.encode()
    head["name_bytes"], head["version_bytes"] = len(name), len(version)
    head["next_step"], head["last_time"] = progress.next_step, progress.last_time
    head["reply_start"] = progress.reply_start
    head["digest"], head["layout"] = np.void(model.digest), np.void(model.layout)
    head["session_id"] = session_ids
    rows["name"], rows["version"] = name, version
    rows["state"], rows["prints"], rows["y"] = states, progress.reply_prints, progress.reply_y
    raw, size = rows.tobytes(), rows.itemsize
    records = [raw[start : start + size] for start in range(0, len(raw), size)]
    return [record + _checksum(record) for record in records]


def encode_one(session: Snapshot) -> bytes:
    """Returns one session's snapshot."""
    is_durable = np.array([session.is_durable])
    return encode(session.model, [session.session_id], session.progress, session.state[None], is_durable)[0]


def decode(raw: bytes) -> Snapshot:
    """Returns the session that bytes hold.

    Everything is checked that the engine relies on: the checksum finds damage, and not what was made up.

    Raises:
        SnapshotError: the bytes are no snapshot, of another version, cut off, damaged, or make no sense;
            NewerVersionError where a later release wrote them.
    """
    head = _head(raw)
    model = Model(
        name="",
        version="",
        digest=head["digest"].tobytes(),
        layout=head["layout"].tobytes(),
        state_size=int(head["state_size"]),
        num_outputs=int(head["num_outputs"]),
    )
    sizes = int(head["name_bytes"]), int(head["version_bytes"])
    record = _record(model, int(head["num_replies"]), sizes)
    whole = record.itemsize + _CHECKSUM_BYTES
    if len(raw) != whole:
        raise SnapshotError(f"it has {len(raw)} bytes where {whole} belong")
    if _checksum(raw[:-_CHECKSUM_BYTES]) != raw[-_CHECKSUM_BYTES:]:
        raise SnapshotError("its checksum is wrong: it is damaged")
    (row,) = np.frombuffer(raw[:-_CHECKSUM_BYTES], record)
    model = dataclasses.replace(
        model, name=_text(row["name"], "model's name"), version=_text(row["version"], "model's version")
    )
    session_id = _text(head["session_id"], "session id")
    if not is_session_id(session_id):
        raise SnapshotError(f"its session id {ID_RULE}")
    progress = Progress(
        next_step=head["next_step"][None].astype(np.int64),
        last_time=head["last_time"][None].astype(np.int64),
        reply_start=head["reply_start"][None].astype(np.int64),
        reply_y=row["y"][None].copy(),
        reply_prints=row["prints"][None].copy(),
    )
    _check_progress(progress)
    is_durable = bool(int(head["flags"]) & _IS_DURABLE)
    return Snapshot(session_id, model, is_durable, progress=progress, state=row["state"].copy())


def decode_foreign(raw: bytes) -> Snapshot:
    """Returns the session that a client's bytes hold.

    Raises:
        SnapshotError: as `decode`, or the state has a value that is not finite, from which no prediction
            comes. A state from the store is taken as it is: the model itself has made it.
    """
    session = decode(raw)
    if not np.isfinite(session.state).all():
        raise SnapshotError("its state has a value that is not finite")
    return session


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise SnapshotError(f"its {what} is not UTF-8") from None


def _check_progress(progress: Progress) -> None:
    """Checks the progress of one session.

    Raises:
        SnapshotError: a number is out of its range, or a remembered reply is not finite.
    """
    next_step, last_time = int(progress.next_step[0]), int(progress.last_time[0])
    start, (_, ring_size) = int(progress.reply_start[0]), progress.reply_prints.shape
    if not 0 <= next_step <= MAX_STEPS:
        raise SnapshotError(f"its next step {next_step} is not within 0 and {MAX_STEPS}")
    if not -MAX_TIME_NS <= last_time <= MAX_TIME_NS:
        raise SnapshotError(f"its last time {last_time} is beyond {MAX_TIME_NS} ns before or after 1970")
    if not 0 <= start <= next_step:
        raise SnapshotError(f"its replies begin at step {start}, which is not within 0 and {next_step}")
    remembered = np.arange(max(start, next_step - ring_size), next_step) % ring_size
    if not np.isfinite(progress.reply_y[0, remembered]).all():
        raise SnapshotError("a remembered reply has a value that is not finite")


def _checksum(record: bytes) -> bytes:
    return zlib.crc32(record).to_bytes(_CHECKSUM_BYTES, "little")


def _head(raw: bytes) -> "np.void":
    """Returns the head of a snapshot, after checks of its sizes.

    Raises:
        SnapshotError: the bytes are no snapshot, of another version, cut off or damaged.
    """
    if len(raw) < _HEAD.itemsize or raw[:4] != MAGIC:
        raise SnapshotError("it does not begin as a snapshot does")
    head: np.void = np.frombuffer(raw[: _HEAD.itemsize], _HEAD)[0]
    version, flags = int(head["version"]), int(head["flags"])
    if not OLDEST_VERSION <= version <= VERSION:
        kind = NewerVersionError if version > VERSION else SnapshotError
        raise kind(f"it is of format version {version}; this server reads {_READABLE}")
    if flags & ~_IS_DURABLE:
        raise SnapshotError(f"it has flags {flags:#x}, which this server does not know")
    sizes = [int(head[name]) for name in ("state_size", "num_outputs", "num_replies")]
    if max(sizes) > _LARGEST or not min(*sizes[1:], head["name_bytes"], head["version_bytes"]):
        raise SnapshotError("its sizes make no sense: it is damaged")
    if sizes[0] + sizes[2] * (2 + sizes[1]) > len(raw):  # more than bytes of this length can hold
        raise SnapshotError(f"{len(raw)} bytes are too few for its sizes: it is cut off")
    return head


def _record(model: Model, num_replies: int, sizes: "tuple[int, int] | None" = None) -> "np.dtype[np.void]":
    """Returns the type of a snapshot without checksum; `sizes` of name and version default to `model`'s."""
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
