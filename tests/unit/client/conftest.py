"""A fake server that runs, and clients connected to it."""

import contextlib

import pytest
from fake_streamcell import FakeServer, FakeTime
from streamcell import Client, RetryPolicy, Sources, Timeout


@pytest.fixture
async def server():
    """A fake server that runs."""
    fake = FakeServer()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
def fake_time():
    """A clock that moves only while something sleeps."""
    return FakeTime()


@pytest.fixture
def sources(fake_time):
    """Time from the fake clock, and the longest delay that the backoff may draw."""
    return Sources(now=fake_time.now, sleep=fake_time.sleep, uniform=lambda low, high: high)


@pytest.fixture
def connect(server, sources):
    """Makes clients of the fake server; their retries take no time."""

    def make(**settings):
        # A millisecond, since gRPC's own search for a server does sleep.
        settings.setdefault("retry", RetryPolicy(max_attempts=4, initial_delay_seconds=0.001))
        settings.setdefault("timeout", Timeout())
        return Client(settings.pop("target", server.target), sources=sources, **settings)

    return make


@pytest.fixture
async def client(connect):
    """A client of the fake server."""
    async with contextlib.AsyncExitStack() as stack:
        yield await stack.enter_async_context(connect())
