"""Whether a file has changed."""

import os

from service.file_version import version_of


def test_a_write_and_a_rename_change_the_version_and_a_look_does_not(tmp_path):
    """Also a rename that leaves size and time as they were."""
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text("1")
    first = version_of(path)
    assert version_of(str(path)) == first
    path.write_text("22")
    assert version_of(path) != first
    second = version_of(path)
    other.write_text("33")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.rename(path)
    assert version_of(path)[:2] == second[:2]
    assert version_of(path) != second


def test_a_file_that_is_away_has_no_version(tmp_path):
    """Nor has a link to nowhere."""
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert version_of(tmp_path / "none") is version_of(tmp_path / "link") is None
