"""Files that are read again when they change."""

import asyncio
import os

import pytest

from service.errors import ConfigError
from service.watched_files import FileWatch, WatchedFile

BOUND_SECONDS = 60.0


def events(caplog):
    """The events that were logged, with why."""
    return [(record.getMessage(), record.fields.get("why", "")) for record in caplog.records]


@pytest.fixture
def number(tmp_path):
    """A file with a number, and the numbers that were used."""
    path, used = tmp_path / "number", []
    path.write_text("1")
    file = WatchedFile("--number", str(path), int, used.append)
    file.load()
    return path, used, file


class TestLook:
    """One look."""

    def test_an_unchanged_file_is_not_read_again(self, number):
        """Nothing is used twice."""
        _, used, file = number
        file.look()
        assert used == [1]

    def test_a_rewritten_and_a_renamed_file_are_used(self, number, caplog):
        """Also if size and time of change are the same, as after a rename."""
        path, used, file = number
        caplog.set_level("INFO")
        path.write_text("22")
        file.look()
        other = path.with_name("other")
        other.write_text("33")
        os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        other.rename(path)
        file.look()
        assert used == [1, 22, 33]
        assert events(caplog) == [("file_reloaded", "")] * 2

    def test_a_link_that_turns_to_another_file_is_used(self, tmp_path):
        """As Kubernetes replaces secrets."""
        used = []
        for name in ("a", "b"):
            (tmp_path / name).write_text(str(ord(name)))
        link = tmp_path / "link"
        link.symlink_to("a")
        file = WatchedFile("--number", str(link), int, used.append)
        file.load()
        (tmp_path / "new").symlink_to("b")
        (tmp_path / "new").rename(link)
        file.look()
        assert used == [97, 98]

    def test_a_file_that_became_wrong_changes_nothing_and_is_told_once(self, number, caplog):
        """Until it changes again."""
        path, used, file = number
        path.write_text("one")
        for _ in range(3):
            file.look()
        assert used == [1]
        assert [event for event, _ in events(caplog)] == ["file_not_reloaded"]
        assert "invalid literal" in events(caplog)[0][1]
        path.write_text("2")
        file.look()
        assert used == [1, 2]

    def test_a_file_that_is_away_is_told_once_and_used_when_it_is_back(self, number, caplog):
        """Nothing changes meanwhile."""
        path, used, file = number
        path.unlink()
        for _ in range(3):
            file.look()
        assert events(caplog) == [("file_not_reloaded", "No such file or directory")]
        path.write_text("2")
        file.look()
        assert used == [1, 2]

    def test_a_wrong_file_at_the_start_is_told_with_its_flag(self, tmp_path):
        """The server does not start."""
        (tmp_path / "number").write_text("one")
        with pytest.raises(ConfigError, match=r"^--number: .*number: invalid literal"):
            WatchedFile("--number", str(tmp_path / "number"), int, print).load()


class TestWatch:
    """Looks from time to time."""

    @pytest.mark.parametrize("poll_seconds", [0.001, 0.0])
    async def test_a_changed_file_is_used_after_a_while_or_when_told(self, number, poll_seconds):
        """By the clock, or by look_soon alone."""
        path, used, _ = number
        seen = asyncio.Event()
        file = WatchedFile(
            "--number", str(path), int, lambda found: (used.append(found), found == 7 and seen.set())
        )
        file.load()
        watch = FileWatch([file], poll_seconds, print)
        watch.start()
        path.write_text("7")
        if not poll_seconds:
            watch.look_soon()
        async with asyncio.timeout(BOUND_SECONDS):
            await seen.wait()
        await watch.stop()
        assert used == [1, 1, 7]

    async def test_a_watch_of_nothing_does_not_run(self):
        """It can be stopped all the same."""
        watch = FileWatch([], 0.001, print)
        watch.start()
        await watch.stop()
