"""Servers with a store, and servers over folders of models."""

import contextlib
import logging
import shutil
import time

import pytest

from service.persistence import asking, write_behind
from tests import fakes
from tests.fake_store import FakeStore
from tests.fakes import Served
from tests.folder_of_models import ARTIFACTS, NAME, FolderServer

INTERVAL = 0.01
LONG_SECONDS = 60.0  # longer than a busy machine holds up an answer


@pytest.fixture(autouse=True)
def nothing_seems_idle(monkeypatch):
    """Keeps a slow machine from making a session seem idle, to be confirmed first: tests say when."""
    monkeypatch.setattr(write_behind, "_LEAST_CONFIRM_NS", round(LONG_SECONDS * 1e9))


@pytest.fixture
async def serve(monkeypatch):
    """Starts servers over one store, which do not hear each other, nor wait for an answer."""
    monkeypatch.setattr(asking, "_ANSWER_SECONDS", 0)
    monkeypatch.setattr(asking, "_PATIENCE_SECONDS", 0)
    async with _servers(asked=None) as begin:
        yield begin


@pytest.fixture
async def serve_together(monkeypatch):
    """Starts servers over one store, which ask each other for sessions, and wait long for an answer."""
    monkeypatch.setattr(asking, "_ANSWER_SECONDS", LONG_SECONDS)
    monkeypatch.setattr(asking, "_PATIENCE_SECONDS", LONG_SECONDS)
    async with _servers(asked={}) as begin:
        yield begin


@contextlib.asynccontextmanager
async def _servers(asked):
    """Yields a function that starts a server; the servers share their rows, and stop with the block."""
    rows, ended = {}, {}
    async with contextlib.AsyncExitStack() as running:

        async def begin(*models, **changes):
            store = FakeStore(rows, ended, asked)
            changes = {"checkpoint_interval_seconds": INTERVAL, "session_ttl_seconds": 0, **changes}
            # Real time, for the timers of the loop: tests wait for a write, and assert no time.
            served = Served(*models, store=store, clock=time.monotonic_ns, **changes)
            served.store = store
            await served.write_behind.start()
            running.push_async_callback(served.write_behind.abandon)
            return served

        yield begin


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Artifacts: 2 has the state of 1 and other predictions, 3 another state, two more inputs or outputs."""
    folder = tmp_path_factory.mktemp("files")
    return {
        number: fakes.save(folder / f"{number}.pt", module, **changes)
        for number, (module, changes) in ARTIFACTS.items()
    }


@pytest.fixture
async def serve_folder(tmp_path, files):
    """Starts servers over a folder with version 1, or the versions given; the servers stop with the test."""
    async with contextlib.AsyncExitStack() as running:

        async def begin(*versions, **changes):
            for version in versions or ("1",):
                path = tmp_path / NAME / version / "model.pt"
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(files[version], path)
            server = FolderServer(tmp_path, files, **changes)
            await server.start()
            running.push_async_callback(server.stop)
            return server

        yield begin


@pytest.fixture
def logged(caplog):
    """Returns a function that returns the fields of each line that was logged of an event."""
    caplog.set_level(logging.INFO)
    return lambda event: [line.fields for line in caplog.records if line.message == event]
