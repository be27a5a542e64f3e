"""Callbacks that set a future once."""

import asyncio

import pytest

from service.futures import sets


async def test_any_outcome_that_is_no_exception_is_the_end_of_the_wait():
    """A second call changes nothing."""
    done = asyncio.get_running_loop().create_future()
    callback = sets(done)
    callback(7)
    callback(ValueError("late"))
    assert await done is None


async def test_an_exception_is_the_waiters():
    """It is raised where the future is awaited."""
    done = asyncio.get_running_loop().create_future()
    sets(done)(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await done


async def test_a_waiter_that_is_gone_is_not_called():
    """The callback of a cancelled call does nothing."""
    done = asyncio.get_running_loop().create_future()
    done.cancel()
    sets(done)(None)
    assert done.cancelled()
