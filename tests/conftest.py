"""What tests of several kinds share."""

import asyncio
import os

import pytest

from service.processes import tuning
from tests import redis_server

tuning.make_products_reproducible(os.environ)  # before any test imports torch


class LateEventsLoop(asyncio.SelectorEventLoop):
    """A test's event loop, which ignores what other threads want of it once it is closed.

    grpcio hands the events of all loops to the loop that runs. An event of an earlier test's loop would raise
    an error there, and the events behind it would be lost.
    """

    def call_soon_threadsafe(self, callback, *args, context=None):
        """Does nothing on a closed loop."""
        if self.is_closed():
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon_threadsafe(callback, *args, context=context)


def pytest_asyncio_loop_factories():
    """Returns the one kind of loop that tests run on."""
    return {"asyncio": LateEventsLoop}


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory):
    """One Redis for the tests that do not trouble it."""
    if redis_server.PROGRAM is None:
        pytest.skip(redis_server.MISSING)
    server = redis_server.RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def empty_redis(shared_redis):
    """That Redis, with nothing in it."""
    assert shared_redis.command("FLUSHALL") == "+OK"
    return shared_redis
