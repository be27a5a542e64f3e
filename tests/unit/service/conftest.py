"""What the tests of sessions with a store share."""

import contextlib
import time

import pytest

from tests.fake_store import FakeStore
from tests.fakes import Served

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
