"""The load in the background: it runs while the block lasts, and leaves nothing behind."""

import asyncio

import pytest

from bench.background import loading
from bench.errors import BenchError
from loadtest.options import Options
from tests.unit.loadtest.test_loadtest_run import open_sessions, real_server


def options(target):
    """Returns a load that lasts longer than any test."""
    return Options(
        target=target,
        model="mackey-glass",
        mode="prime",
        streams=3,
        frame_steps=100,
        seconds=3600.0,
        warm_up=0.0,
    )


async def test_load_runs_as_long_as_the_block():
    """Its sessions are open within the block, and closed after it."""
    async with real_server() as server:
        block = loading(options(str(server.listen)), ())
        await asyncio.to_thread(block.__enter__)
        assert open_sessions(server) == 3
        await asyncio.to_thread(block.__exit__, None, None, None)
        assert open_sessions(server) == 0


def test_load_that_cannot_begin_stops_the_benchmark():
    """Nobody listens on port 1 of the loopback; the error of the process is passed on."""
    with pytest.raises(BenchError, match="no Streamcell server answers"), loading(options("127.0.0.1:1"), ()):
        pass


async def test_load_that_failed_stops_the_benchmark():
    """The figures measured beside it would be wrong."""
    async with real_server(max_queue_steps=100) as server:
        block = loading(options(str(server.listen)), ())
        await asyncio.to_thread(block.__enter__)
        await server.abandon()
        with pytest.raises(BenchError, match="the load in the background"):
            await asyncio.to_thread(block.__exit__, None, None, None)
