"""Stores in trouble: calls that must fail, and how a store's answer is read."""

import contextlib

import pytest

from service.errors import ConfigError
from service.store.base import Claim, StoreError, Write, WriteKind, WrongStoreError

OPENING = Claim("a", may_create=True, may_find=True, may_take_over=True)


def save(epoch, record=b"r", key="a"):
    """Returns a save at an epoch."""
    return Write(WriteKind.SAVE, key, epoch, record, 1.0)


async def claim_status(store):
    """Claims a row, and returns the status of the claim."""
    (claimed,) = await store.claim([OPENING])
    return claimed.status


async def check_refused(store, *words):
    """Opens a store; that must fail with a message that names the flag and contains these words."""
    async with contextlib.aclosing(Closing(store)):
        with pytest.raises(ConfigError, match=r"^--store: ") as error:
            await store.open()
    assert all(word in str(error.value) for word in words), error.value
    return str(error.value)


async def check_away(store, *words):
    """Opens a store twice; both must fail, not for good, with a message that contains these words."""
    async with contextlib.aclosing(Closing(store)):
        for _ in range(2):
            with pytest.raises(StoreError) as error:
                await store.open()
            assert not isinstance(error.value, WrongStoreError)
            assert all(word in str(error.value) for word in words), error.value


async def check_trouble(store, *words):
    """Makes each call to a store; all must fail, with a message that contains these words."""
    for call in (store.claim([OPENING]), store.write([save(1)]), store.check()):
        with pytest.raises(StoreError) as error:
            await call
        assert all(word in str(error.value) for word in words), error.value


class Closing:
    """A store with the method `aclose`, for `contextlib.aclosing`."""

    def __init__(self, store):
        self.aclose = store.close
