"""How files are written."""

from model.files import write_atomically


def test_files_are_written_whole(tmp_path):
    """A file is replaced in one move, and no partial file stays behind."""
    for content in (b"first", b"second"):
        write_atomically(tmp_path / "deep" / "file", content)
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]
        assert (tmp_path / "deep" / "file").read_bytes() == content
