"""Snapshots over releases: committed bytes are read with the same values by every later server."""

import pathlib
import zlib

import numpy as np
import pytest

from service.engine import snapshot
from service.engine.snapshot import Model, NewerVersionError, SnapshotError

VECTORS = pathlib.Path(__file__).parents[3] / "vectors"


def committed(name):
    """Returns the bytes of a committed snapshot."""
    return bytes.fromhex((VECTORS / f"snapshot-{name}.hex").read_text())


def of_version(raw, version):
    """Returns a snapshot with another version in its head, and the checksum that belongs to it."""
    changed = raw[:4] + version.to_bytes(2, "little") + raw[6:-4]
    return changed + zlib.crc32(changed).to_bytes(4, "little")


class TestVersion1:
    """Sessions of format version 1."""

    def test_a_session_with_steps_is_read(self):
        """A durable session at step 5 that remembers two replies, of a model with a name beyond ASCII."""
        found = snapshot.decode(committed("v1-stepped"))
        model = Model("tide-höhe", "12", bytes(range(16)), bytes(range(16, 32)), state_size=3, num_outputs=2)
        assert (found.session_id, found.model, found.is_durable) == ("sensor-7", model, True)
        assert found.state.tolist() == [0.25, -3.0, float(np.float32(1e-30))]
        progress = found.progress
        assert progress.next_step.tolist() == [5]
        assert progress.last_time.tolist() == [1_700_000_000_123_456_789]
        assert progress.reply_start.tolist() == [3]
        assert progress.reply_y.tolist() == [[[0.5, -1.25], [2.0, 3.5], [0.0, 0.0]]]
        assert progress.reply_prints.tolist() == [[0x1122334455667788, 0xFFEEDDCCBBAA9988, 0]]

    def test_a_new_session_is_read(self):
        """A session at step 0, with the longest id; it is not durable, and remembers nothing."""
        found = snapshot.decode(committed("v1-new"))
        model = Model("m", "1", b"\xff" * 16, bytes(15) + b"\1", state_size=1, num_outputs=1)
        assert (found.session_id, found.model, found.is_durable) == ("a" * 128, model, False)
        assert found.state.tolist() == [0.0]
        progress = found.progress
        columns = (progress.next_step, progress.last_time, progress.reply_start)
        assert [column.tolist() for column in columns] == [[0], [0], [0]]
        assert (progress.reply_y.tolist(), progress.reply_prints.tolist()) == ([[[0.0]]], [[0]])

    @pytest.mark.parametrize("name", ["v1-stepped", "v1-new"])
    def test_this_release_writes_the_same_bytes(self, name):
        """For as long as version 1 is the one that is written: a change of the format needs a new number."""
        if snapshot.VERSION != 1:
            pytest.skip("a later version is written")
        assert snapshot.encode_one(snapshot.decode(committed(name))) == committed(name)


def test_every_version_that_is_read_has_committed_bytes():
    """A release that raises VERSION commits what it writes."""
    found = {int(path.name.split("-")[1].removeprefix("v")) for path in VECTORS.glob("snapshot-v*.hex")}
    assert found >= set(range(snapshot.OLDEST_VERSION, snapshot.VERSION + 1))
    assert snapshot.OLDEST_VERSION == 1, "the files of the first release are read by every later one"


def test_a_newer_version_is_refused_in_words():
    """It may be whole: whoever has such a row leaves it as it is."""
    raw = of_version(committed("v1-new"), snapshot.VERSION + 1)
    with pytest.raises(
        NewerVersionError, match=f"is of format version {snapshot.VERSION + 1}; this server reads"
    ):
        snapshot.decode(raw)
    with pytest.raises(SnapshotError, match="is of format version 0") as error:
        snapshot.decode(of_version(committed("v1-new"), 0))
    assert not isinstance(error.value, NewerVersionError)
