"""Servers with a store, and servers over folders of models."""

import contextlib
import logging
import shutil
import time

import pytest

from tests import fakes
from tests.fake_store import FakeStore
from tests.fakes import Served
from tests.folder_of_models import ARTIFACTS, NAME, FolderServer

INTERVAL = 0.01


@pytest.fixture
async def serve():
    """Starts servers over one store, which they share; the servers stop with the test."""
    rows, ended = {}, {}
    async with contextlib.AsyncExitStack() as running:

        async def begin(*models, **changes):
            store = FakeStore(rows, ended)
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
