"""The locks that show which owners of an SQLite store live."""

import subprocess
import sys

from service.store.owner_locks import OwnerLocks

_HOLD = """
import pathlib, sys
from service.store.owner_locks import OwnerLocks
locks = OwnerLocks(pathlib.Path(sys.argv[1]), "other")
locks.hold()
print("held", flush=True)
sys.stdin.read()
"""


def test_an_owner_lives_from_hold_to_release(tmp_path):
    """For itself and for others; an owner that was never there is dead."""
    ours, theirs = OwnerLocks(tmp_path / "owners", "a"), OwnerLocks(tmp_path / "owners", "b")
    ours.hold()
    theirs.hold()
    assert [ours.is_alive(each) for each in ("a", "b", "c")] == [True, True, False]
    theirs.release()
    theirs.release()
    assert not ours.is_alive("b")
    assert [each.name for each in (tmp_path / "owners").iterdir()] == ["a"]
    ours.release()


def test_a_killed_process_is_dead_at_once_and_leaves_no_file_for_long(tmp_path):
    """The system ends its lock; the next owner that starts removes the file."""
    ours = OwnerLocks(tmp_path, "a")
    ours.hold()
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        assert ours.is_alive("other")
        process.kill()
        process.wait()
        assert not ours.is_alive("other")
    third = OwnerLocks(tmp_path, "c")
    third.hold()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "c"]
    third.release()
    ours.release()


def test_a_file_that_was_removed_is_made_again(tmp_path):
    """By the next `hold`, of which there is one a second."""
    ours, theirs = OwnerLocks(tmp_path, "a"), OwnerLocks(tmp_path, "b")
    ours.hold()
    (tmp_path / "a").unlink()
    assert not theirs.is_alive("a")
    ours.hold()
    assert theirs.is_alive("a")
    ours.release()
