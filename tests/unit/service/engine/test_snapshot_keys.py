"""Signed snapshots: what a key of the fleet signed is taken, nothing else is, and keys can be rotated."""

import base64
import hashlib
import hmac
import pathlib

import pytest

from service.engine import snapshot_keys
from service.engine.snapshot import SnapshotError
from service.engine.snapshot_keys import SnapshotKeys
from service.errors import ConfigError

VECTORS = pathlib.Path(__file__).parents[3] / "vectors"
FIRST, SECOND = bytes(range(32)), bytes(range(100, 140))
RAW = b"SCSN and whatever else a snapshot has"


@pytest.fixture
def keys(tmp_path):
    """Returns a function that makes the holder of the keys given, in a file of its own."""
    made = []

    def make(*given):
        path = tmp_path / f"{len(made)}.keys"
        path.write_text("".join(f"{key.hex()}\n" for key in given))
        made.append(path)
        return SnapshotKeys(str(path))

    return make


def problem(holder, raw):
    """Returns why bytes are refused."""
    with pytest.raises(SnapshotError) as caught:
        holder.verified(raw)
    return str(caught.value)


def committed(name):
    """Returns the bytes of a committed file."""
    return bytes.fromhex((VECTORS / f"{name}.hex").read_text())


class TestSigning:
    """A signature covers everything."""

    def test_what_is_signed_is_verified(self, keys):
        """The snapshot comes back to the bit, and no bit of it is hidden."""
        holder = keys(FIRST)
        signed = holder.sign(RAW)
        assert signed.endswith(RAW)
        assert len(signed) == len(RAW) + 48
        assert holder.verified(signed) == RAW

    def test_the_bytes_are_those_of_the_document(self, keys):
        """docs/snapshots.md says which bytes are signed how: computed here from its words."""
        key_id = hmac.new(FIRST, b"streamcell snapshot key id", hashlib.sha256).digest()[:8]
        head = b"SCSS" + b"\1\0" + b"\0\0" + key_id
        mac = hmac.new(FIRST, b"streamcell snapshot" + head + RAW, hashlib.sha256).digest()
        assert keys(FIRST).sign(RAW) == head + mac + RAW

    def test_committed_bytes_are_verified_by_every_later_release(self, keys):
        """The committed snapshot of version 1, signed with the key 00 01 02 … 1f."""
        inner = committed("snapshot-v1-stepped")
        assert keys(FIRST).verified(committed("signed-v1-stepped")) == inner
        assert keys(FIRST).sign(inner) == committed("signed-v1-stepped")

    def test_any_changed_bit_is_refused(self, keys):
        """Of the head, of the signature, of the snapshot."""
        holder = keys(FIRST)
        signed = holder.sign(RAW)
        for at in range(len(signed)):
            for bit in (1, 0x80):
                problem(holder, signed[:at] + bytes([signed[at] ^ bit]) + signed[at + 1 :])

    def test_cut_off_and_run_on_bytes_are_refused(self, keys):
        """A signed snapshot is refused at every other length."""
        holder = keys(FIRST)
        signed = holder.sign(RAW)
        for length in [*range(len(signed)), len(signed) + 1]:
            problem(holder, (signed + b"\0")[:length])


class TestRefusals:
    """Each refusal says what is the matter."""

    @pytest.mark.parametrize("raw", [b"", RAW, b"SCS"])
    def test_unsigned(self, keys, raw):
        """What has no signature."""
        assert problem(keys(FIRST), raw).startswith("it is not signed")

    def test_another_key(self, keys):
        """What another fleet signed."""
        assert problem(keys(FIRST), keys(SECOND).sign(RAW)).startswith("it is signed with another key")

    def test_a_wrong_signature(self, keys):
        """What was changed after it was signed, or signed by somebody who knows no more than the key's id."""
        holder = keys(FIRST)
        signed = holder.sign(RAW)
        for forged in (signed[:-1] + b"!", signed[:16] + bytes(32) + RAW):
            assert problem(holder, forged).startswith("its signature is wrong")

    def test_cut_off_within_the_signature(self, keys):
        """With and without keys."""
        signed = keys(FIRST).sign(RAW)
        for holder in (keys(FIRST), SnapshotKeys()):
            assert problem(holder, signed[:47]) == "its signature is cut off"

    def test_a_later_version(self, keys):
        """With and without keys."""
        signed = keys(FIRST).sign(RAW)
        for holder in (keys(FIRST), SnapshotKeys()):
            found = problem(holder, signed[:4] + b"\2\0" + signed[6:])
            assert found == "its signature is of version 2; this server reads 1"

    def test_signatures_are_compared_in_constant_time(self, keys, monkeypatch):
        """By the comparison of the standard library that is made for it."""
        compared = []
        real = hmac.compare_digest
        monkeypatch.setattr(
            snapshot_keys.hmac, "compare_digest", lambda *both: compared.append(both) or real(*both)
        )
        holder = keys(FIRST)
        holder.verified(holder.sign(RAW))
        assert [len(each) for each in compared[0]] == [32, 32]


class TestWithoutKeys:
    """A server without keys signs nothing and asks for no signature."""

    def test_snapshots_leave_as_they_are(self):
        """And are taken as they are."""
        holder = SnapshotKeys()
        assert holder.sign(RAW) == RAW
        assert holder.verified(RAW) == RAW
        assert holder.files == []

    def test_anothers_signature_is_not_looked_at(self, keys):
        """So that a key can be introduced, and removed, one server after another."""
        signed = keys(FIRST).sign(RAW)
        assert SnapshotKeys().verified(signed) == RAW
        assert SnapshotKeys().verified(signed[:20] + b"?" + signed[21:]) == RAW


class TestRotation:
    """The first key signs, each key verifies."""

    def test_a_new_key_is_added_before_it_signs(self, keys):
        """Servers with the new key last, first and alone understand each other step by step."""
        old, added, moved, alone = (
            keys(*each) for each in ([FIRST], [FIRST, SECOND], [SECOND, FIRST], [SECOND])
        )
        for one, other in ((old, added), (added, moved), (moved, alone)):
            assert one.verified(other.sign(RAW)) == RAW
            assert other.verified(one.sign(RAW)) == RAW
        assert problem(alone, old.sign(RAW)).startswith("it is signed with another key")

    def test_a_changed_file_counts_from_the_next_look_on(self, tmp_path):
        """Whoever watches the file looks: keys that are gone sign and verify no longer."""
        path = tmp_path / "keys"
        path.write_text(f"{FIRST.hex()}\n")
        holder = SnapshotKeys(str(path))
        (file,) = holder.files
        before = holder.sign(RAW)
        replace(path, f"{SECOND.hex()}\n")
        assert holder.verified(before) == RAW
        file.look()
        assert holder.sign(RAW) == SnapshotKeys(str(path)).sign(RAW) != before
        assert problem(holder, before).startswith("it is signed with another key")

    @pytest.mark.parametrize("text", [None, "", "junk!\n", "ab" * 31 + "\n"])
    def test_a_file_that_cannot_be_used_changes_nothing(self, tmp_path, logged, text):
        """It is logged without a word of it; signing and verifying go on with the keys from before."""
        path = tmp_path / "keys"
        path.write_text(f"{FIRST.hex()}\n")
        holder = SnapshotKeys(str(path))
        signed = holder.sign(RAW)
        path.unlink() if text is None else replace(path, text)
        holder.files[0].look()
        assert holder.verified(signed) == RAW
        assert holder.sign(RAW) == signed
        (line,) = logged("file_not_reloaded")
        assert (line["setting"], line["path"]) == ("--snapshot-key", str(path))
        assert not text or text.strip() not in str(line)


def replace(path, text):
    """Puts another file in a file's place."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


class TestFile:
    """The file has one key a line, in hexadecimal or base64."""

    def test_both_forms_empty_lines_and_comments(self):
        """In the order of the file."""
        text = f"# the fleet's\r\n\r\n {FIRST.hex().upper()} \r\n{base64.b64encode(SECOND).decode()}\n"
        assert snapshot_keys.parse(text) == [FIRST, SECOND]

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "holds no key"),
            ("# nothing\n\n", "holds no key"),
            ("# a key\nnot a key\n", "line 2 is neither hexadecimal nor base64"),
            (FIRST.hex() + "\n" + base64.b64encode(bytes(31)).decode(), "line 2 has 31 bytes"),
            ("ab" * 31, "line 1 is neither"),
            (FIRST.hex()[1:], "line 1 is neither"),
            (FIRST.hex() + "zz", "line 1 is neither"),
        ],
    )
    def test_what_is_no_key_is_named_by_its_line(self, text, says):
        """The message never has the line itself, which may be nearly a key."""
        with pytest.raises(ValueError, match=says) as caught:
            snapshot_keys.parse(text)
        assert all(line.strip() not in str(caught.value) for line in text.splitlines() if len(line) > 8)

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (None, "No such file"),
            (b"\xff\xfe", "can't decode"),
            (b"\n", "holds no key"),
        ],
    )
    def test_a_server_does_not_start_with_a_file_that_is_wrong(self, tmp_path, content, says):
        """The message names flag and file."""
        path = tmp_path / "keys"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=says) as caught:
            SnapshotKeys(str(path))
        assert str(caught.value).startswith(f"--snapshot-key: {path}: ")
        assert "\n" not in str(caught.value)
