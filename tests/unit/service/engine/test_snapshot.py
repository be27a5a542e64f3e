"""A session as bytes: decoding returns what was encoded, and other bytes are refused with a reason."""

import dataclasses
import zlib

import numpy as np
import pytest

from service.engine import snapshot
from service.engine.progress import Progress
from service.engine.snapshot import Model, Snapshot, SnapshotError

MODEL = Model("tide-höhe", "12", b"d" * 16, b"l" * 16, state_size=5, num_outputs=2)


def session(next_step=7, num_replies=3):
    """Returns a session with different numbers everywhere."""
    draw = np.random.default_rng(next_step)
    progress = Progress(
        np.array([next_step]),
        np.array([-(10**18)]),
        np.array([max(0, next_step - 2)]),
        draw.standard_normal((1, num_replies, 2)).astype(np.float32),
        draw.integers(0, 2**63, (1, num_replies)).astype(np.uint64),
    )
    return Snapshot("a-session", MODEL, True, progress, draw.standard_normal(5).astype(np.float32))


def assert_equal(found, wanted):
    """Compares two sessions to the bit."""
    assert (found.session_id, found.model, found.is_durable) == (
        wanted.session_id,
        wanted.model,
        wanted.is_durable,
    )
    assert found.state.tobytes() == wanted.state.tobytes()
    for field in dataclasses.fields(Progress):
        one, other = (getattr(each.progress, field.name) for each in (found, wanted))
        assert one.tobytes() == other.tobytes(), field.name
        assert one.shape == other.shape, field.name


def test_a_session_comes_back_as_it_was():
    """Names beyond ASCII and negative times are decoded, too."""
    assert_equal(snapshot.decode(snapshot.encode_one(session())), session())


def test_many_sessions_are_encoded_like_each_alone():
    """Encoding several sessions at once gives the bytes of each session alone."""
    several = [dataclasses.replace(session(number), session_id=f"s{number}") for number in (1, 5, 9)]
    progress = Progress(
        *(
            np.concatenate([getattr(each.progress, field.name) for each in several])
            for field in dataclasses.fields(Progress)
        )
    )
    states = np.stack([each.state for each in several])
    found = snapshot.encode(
        MODEL, [each.session_id for each in several], progress, states, np.array([True] * 3)
    )
    assert found == [snapshot.encode_one(each) for each in several]


def test_the_longest_id_fits():
    """An id has up to 128 characters, as the API allows."""
    longest = dataclasses.replace(session(), session_id="x" * 128)
    assert snapshot.decode(snapshot.encode_one(longest)).session_id == "x" * 128


def test_a_changed_bit_is_refused():
    """A snapshot with any one bit changed is refused, never decoded as another session."""
    raw = snapshot.encode_one(session())
    for at in range(len(raw)):
        damaged = raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]
        with pytest.raises(SnapshotError):
            snapshot.decode(damaged)


def test_cut_off_and_run_on_bytes_are_refused():
    """A snapshot is refused at every other length."""
    raw = snapshot.encode_one(session())
    for length in [*range(len(raw)), len(raw) + 1]:
        with pytest.raises(SnapshotError):
            snapshot.decode((raw + b"\0")[:length])


@pytest.mark.parametrize(
    ("at", "value", "problem"),
    [
        (0, b"SCSX", "does not begin as a snapshot does"),
        (4, b"\x02\0", "format version 2; this server reads 1"),
        (8, b"\xff\xff\xff\xff", "make no sense"),
        (8, b"\0\0\0\x01", "cut off"),
        (16, b"\0\0\0\0", "make no sense"),
        (20, b"\0\0", "make no sense"),
    ],
)
def test_a_refusal_names_the_problem(at, value, problem):
    """The message names the problem, also for bytes whose checksum is right."""
    raw = snapshot.encode_one(session())[:-4]
    raw = raw[:at] + value + raw[at + len(value) :]
    with pytest.raises(SnapshotError, match=problem):
        snapshot.decode(raw + zlib.crc32(raw).to_bytes(4, "little"))


def forged(**changes):
    """Returns a snapshot with other fields in its head or body, and the checksum that belongs to them."""
    raw = bytearray(snapshot.encode_one(session())[:-4])
    record = np.frombuffer(raw, snapshot._record(MODEL, 3))
    for name, value in changes.items():
        target = record if name in record.dtype.names else record["head"]
        target[name] = value
    return bytes(raw) + zlib.crc32(raw).to_bytes(4, "little")


REPLY_NAN = np.array([[0.0, 0.0], [np.nan, 0.0], [0.0, 0.0]], np.float32)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"session_id": b"caf\xe9"}, "session id is not UTF-8"),
        ({"session_id": "café".encode()}, "session id must be 1 to 128 printable ASCII"),
        ({"session_id": b"a b"}, "session id must be"),
        ({"session_id": b""}, "session id must be"),
        ({"name": b"\xff\xfe"}, "model's name is not UTF-8"),
        ({"version": b"\xff"}, "model's version is not UTF-8"),
        ({"next_step": -1}, "next step -1 is not within"),
        ({"next_step": 2**63 - 1}, "next step 9223372036854775807 is not within"),
        ({"last_time": 2**62 + 1}, "last time 4611686018427387905 is beyond"),
        ({"last_time": -(2**63)}, "last time -9223372036854775808 is beyond"),
        ({"reply_start": -5}, "replies begin at step -5"),
        ({"reply_start": 8}, "replies begin at step 8"),
        ({"y": REPLY_NAN, "next_step": 8}, "remembered reply has a value that is not finite"),
        ({"flags": 0x12}, "flags 0x12, which this server does not know"),
    ],
)
def test_what_is_made_up_is_refused(changes, problem):
    """A checksum is no proof: whatever the engine relies on is checked."""
    with pytest.raises(SnapshotError, match=problem):
        snapshot.decode(forged(**changes))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_clients_state_must_be_finite(value):
    """No prediction comes from another one. What the store has, the model itself has made."""
    raw = forged(state=np.array([0, 1, value, 3, 4], np.float32))
    with pytest.raises(SnapshotError, match="its state has a value that is not finite"):
        snapshot.decode_foreign(raw)
    assert np.array_equal(snapshot.decode(raw).state, np.array([0, 1, value, 3, 4]), equal_nan=True)


def test_places_without_a_reply_may_hold_anything():
    """Only the replies that a repeat may get are looked at."""
    raw = forged(y=np.full((3, 2), np.nan), next_step=7, reply_start=7)
    assert snapshot.decode(raw).progress.next_step[0] == 7


def test_the_largest_numbers_leave_room():
    """A session of the most steps can go on, at the last time that there is."""
    found = snapshot.decode(forged(next_step=2**62, last_time=2**62, reply_start=2**62))
    assert (found.progress.next_step[0], found.progress.last_time[0]) == (2**62, 2**62)
