"""What tests of several kinds share."""

import os

import pytest

from service.processes import tuning
from tests import redis_server

tuning.make_products_reproducible(os.environ)  # before any test imports torch


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
