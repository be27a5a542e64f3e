"""Servers with a store, and servers over folders of models."""

import contextlib
import logging
import shutil
import time

import pytest

from tests import fakes
from tests.fake_store import FakeStore
from tests.fakes import Served
from tests.folder_of_models import MADE, NAME, House

INTERVAL = 0.01


@pytest.fixture
async def serve():
    """Begins servers over rows that they share; they end with the test."""
    rows = {}
    async with contextlib.AsyncExitStack() as running:

        async def begin(*models, **changes):
            store = FakeStore(rows)
            changes = {"checkpoint_interval_seconds": INTERVAL, "session_ttl_seconds": 0, **changes}
            # Real time, for the loop's timers; what is written when is waited for, not timed.
            served = Served(*models, store=store, clock=time.monotonic_ns, **changes)
            served.store = store
            await served.write_behind.start()
            running.push_async_callback(served.write_behind.abandon)
            return served

        yield begin


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Artifacts: 2 has 1's state and other predictions, 3 another state, others more inputs or outputs."""
    folder = tmp_path_factory.mktemp("files")
    return {
        number: fakes.save(folder / f"{number}.pt", module, **changes)
        for number, (module, changes) in MADE.items()
    }


@pytest.fixture
async def serve_folder(tmp_path, files):
    """Begins servers over folders with version 1, or what else is given; they end with the test."""
    async with contextlib.AsyncExitStack() as running:

        async def begin(*versions, **changes):
            for version in versions or ("1",):
                path = tmp_path / NAME / version / "model.pt"
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(files[version], path)
            house = House(tmp_path, files, **changes)
            await house.start()
            running.push_async_callback(house.stop)
            return house

        yield begin


@pytest.fixture
def told(caplog):
    """Returns what was logged of an event, as its fields."""
    caplog.set_level(logging.INFO)
    return lambda event: [line.fields for line in caplog.records if line.message == event]
