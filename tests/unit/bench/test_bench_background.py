"""The load beside a measured one: under way while the block lasts, and nothing left of it after."""

import asyncio

import pytest

from bench.background import loading
from bench.errors import BenchError
from loadtest.options import Options
from tests.unit.loadtest.test_loadtest_run import open_sessions, real_server


def options(target):
    """Returns a load that would go on for longer than any test."""
    return Options(
        target=target,
        model="mackey-glass",
        mode="prime",
        streams=3,
        frame_steps=100,
        seconds=3600.0,
        warm_up=0.0,
    )


async def test_load_is_under_way_as_long_as_the_block():
    """Its sessions are open within, and closed after."""
    async with real_server() as server:
        block = loading(options(str(server.listen)), ())
        await asyncio.to_thread(block.__enter__)
        assert open_sessions(server) == 3
        await asyncio.to_thread(block.__exit__, None, None, None)
        assert open_sessions(server) == 0


def test_load_that_cannot_begin_stops_the_benchmark():
    """Nobody listens on port 1 of the loopback; its words are passed on."""
    with pytest.raises(BenchError, match="no Streamcell server answers"), loading(options("127.0.0.1:1"), ()):
        pass


async def test_load_that_failed_stops_the_benchmark():
    """What was measured beside it is not what it was to be."""
    async with real_server(max_queue_steps=100) as server:
        block = loading(options(str(server.listen)), ())
        await asyncio.to_thread(block.__enter__)
        await server.abandon()
        with pytest.raises(BenchError, match="the load in the background"):
            await asyncio.to_thread(block.__exit__, None, None, None)
