"""Compressed messages, awaited."""

import asyncio
import zlib

import pytest

from service.errors import Code
from service.fronts.inflating import inflated, inflation_of
from service.rpc.inflation import Packed
from service.rpc.statuses import RefusedError
from tests.integration.conftest import settings
from tests.integration.echo_service import router

TEXT = b"a message " * 1000


def inflation(**changes):
    """What inflates, with a front's settings."""
    given = settings(**changes)
    return inflation_of(router(given), given)


def packed(text=TEXT):
    """A compressed message."""
    return Packed(zlib.compress(text), zlib.MAX_WBITS)


async def test_a_message_is_what_it_inflates_to_and_a_large_one_is_refused():
    """By the bound of the settings."""
    assert await inflated(packed(), inflation()) == TEXT
    with pytest.raises(RefusedError) as caught:
        await inflated(packed(), inflation(max_message_bytes=1000))
    assert caught.value.status.code == Code.RESOURCE_EXHAUSTED


async def test_a_message_whose_call_has_ended_is_not_inflated():
    """It waits for room, is dropped, and never runs."""
    turns = inflation()
    turns._request_bytes.num_bytes = turns._request_bytes.max_bytes
    message = packed()
    waiting = asyncio.create_task(inflated(message, turns))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert message.is_dropped
