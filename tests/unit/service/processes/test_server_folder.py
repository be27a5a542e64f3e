"""A server's folder: who may remove it, and when."""

import os
import stat
import subprocess
import sys

import pytest

from service.processes.server_folder import ServerFolder

# Holds what it inherited until its standard input ends.
HOLDING = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def folder(tmp_path):
    """A folder of a living server, with a file in it."""
    folder = ServerFolder(tmp_path)
    (folder.path / "sessions.db").write_text("rows")
    yield folder
    folder.close()


def die(folder):
    """Ends the folder's server as kill -9 does: the lock is released, and nothing else is done."""
    folder._is_open = False
    os.close(folder.lock)


class TestEnd:
    """The end of a server."""

    def test_a_server_that_ends_removes_its_folder(self, folder):
        """With all that is in it; a second end does nothing."""
        folder.close()
        folder.close()
        assert not folder.path.exists()

    def test_only_this_user_can_look_into_the_folder(self, folder):
        """The socket of Envoy's administration is in it, and sessions of workers."""
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


class TestNextStart:
    """Another server's start, in the same place."""

    def test_a_dead_servers_folder_is_removed(self, tmp_path, folder):
        """Nobody holds its lock any more."""
        die(folder)
        other = ServerFolder(tmp_path)
        assert [each.name for each in tmp_path.iterdir()] == [other.path.name]
        other.close()

    def test_a_living_servers_folder_stays(self, tmp_path, folder):
        """Its lock is held."""
        ServerFolder(tmp_path).close()
        assert (folder.path / "sessions.db").read_text() == "rows"

    def test_a_living_workers_folder_stays(self, tmp_path, folder):
        """A worker may outlive its supervisor for a moment, and writes its sessions meanwhile."""
        with subprocess.Popen(HOLDING, stdin=subprocess.PIPE, pass_fds=[folder.lock]) as worker:
            die(folder)
            ServerFolder(tmp_path).close()
            assert folder.path.exists()
            worker.stdin.close()
            worker.wait()
        ServerFolder(tmp_path).close()
        assert not folder.path.exists()

    def test_what_is_no_servers_folder_stays(self, tmp_path):
        """Folders without a lock, files, links, and folders whose lock is a link."""
        (tmp_path / "streamcell-notes").mkdir()
        (tmp_path / "streamcell-file").write_text("mine")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "lock").touch()
        (tmp_path / "streamcell-link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "streamcell-linked").mkdir()
        (tmp_path / "streamcell-linked" / "lock").symlink_to(tmp_path / "elsewhere" / "lock")
        before = sorted(tmp_path.rglob("*"))
        ServerFolder(tmp_path).close()
        assert sorted(tmp_path.rglob("*")) == before

    def test_another_users_folder_stays(self, tmp_path, folder, monkeypatch):
        """Even where the lock could be taken."""
        die(folder)
        monkeypatch.setattr(os, "getuid", lambda: 1 + folder.path.stat().st_uid)
        ServerFolder(tmp_path).close()
        assert folder.path.exists()
