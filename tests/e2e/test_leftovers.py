"""What a server leaves behind: nothing at its end, and nothing after the next start if it was killed."""

import pathlib
import signal
import tempfile

import pytest

from tests.e2e.conftest import children, until_gone


@pytest.fixture
def folder():
    """A folder for temporary files, with a path short enough for a socket in it."""
    with tempfile.TemporaryDirectory() as path:
        yield pathlib.Path(path)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_leaves_nothing_behind(start_server, folder, workers):
    """No folder for temporary files, or after kill -9 none from the next start on; nor a file in /dev/shm.

    The folder of another server, which lives, stays.
    """
    given = {"environment": {"TMPDIR": str(folder)}}
    start_server(**given).event("serving")
    folders = set(folder.iterdir())
    for number in (signal.SIGTERM, signal.SIGKILL):
        server = start_server("--workers", workers, **given)
        server.event("serving")
        processes = children(server.process.pid)
        mapped = [pathlib.Path(f"/proc/{each}/maps").read_text() for each in processes]
        assert not any("envoy_shared_memory" in each for each in mapped)
        server.signal(number)
        server.wait()
        for each in processes:
            until_gone(each)
        if number == signal.SIGKILL:
            assert start_server("--workers", workers, "--models", "/nonexistent", **given).wait() == 2
        assert set(folder.iterdir()) == folders
