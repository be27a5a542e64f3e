"""When Redis has writes on its disk: asked by WAITAOF, which Redis answers from version 7.2 on.

WAITAOF speaks of the writes of its own connection. So the connection of such writes is held until the answer,
and one that was lost in between answers nothing. The answer takes as long as an fsync with `appendfsync
always`, up to a second with `everysec`, and never comes with `no`. Does not know rows.
"""

import contextlib
import time

from redis import exceptions
from redis.asyncio import Redis

from service.store.base import StoreError

_SHARE = 0.8  # of the time for an exchange: Redis must answer that it was not in time

# With `everysec` there are fsyncs once a second. Some releases answer WAITAOF before (redis/redis#13793).
_LEAST_SECONDS = 0.5
_TOO_EARLY = "Redis says too early that its file is synced: appendfsync always, or a newer release, helps"


class DiskWait:
    """Writes that are to reach the disk, on a connection that is held from the first of them on.

    Args:
        redis: the client.
        timeout_seconds: the time for an exchange with the server.
    """

    def __init__(self, redis: Redis, timeout_seconds: float) -> None:
        self._redis = redis
        self._wait_milliseconds = round(_SHARE * timeout_seconds * 1000)
        self._held: Redis | None = None

    def connection(self) -> Redis:
        """Returns a client with the connection for the next write; the connection is held from now on."""
        if self._held is None:
            self._held = self._redis.client()
        return self._held

    async def wait(self) -> None:
        """Returns when the writes on the held connection are on the disk; later writes get another one.

        Raises:
            StoreError: not in time, or the connection was lost: nobody knows.
            RedisError: Redis cannot say.
        """
        held, self._held = self._held, None
        if held is None:
            raise StoreError("no connection has the writes any more")
        try:
            if held.connection is None or not held.connection.is_connected:
                raise StoreError("the connection was lost before the writes were on the disk of Redis")
            num_synced, _ = await held.waitaof(1, 0, self._wait_milliseconds)
        finally:
            await _release(held)
        if not num_synced:
            seconds = self._wait_milliseconds / 1000
            raise StoreError(
                f"Redis has not synced its file within {seconds:g} s: see its disk and appendfsync"
            )

    async def _timed_write(self, key: str, value: bytes) -> float:
        """Writes a key, and returns how many seconds Redis took to say that it is on the disk."""
        started = time.monotonic()
        await self.connection().set(key, value)
        await self.wait()
        return time.monotonic() - started

    async def _syncs_each_second(self) -> bool:
        """Returns whether appendfsync is everysec; False where Redis keeps its settings to itself."""
        try:
            found = await self._redis.config_get("appendfsync")
        except exceptions.ResponseError:
            return False
        return found.get("appendfsync") == "everysec"

    async def release(self) -> None:
        """Releases the connection, if one is held; whether its writes are on the disk stays unknown."""
        held, self._held = self._held, None
        if held is not None:
            await _release(held)

    async def problem(self, key: str, value: bytes) -> str:
        """Writes a key, and returns why Redis cannot say when the write is on its disk; empty if it can.

        Raises:
            RedisError: the connection failed.
        """
        try:
            await self._timed_write(key, value)
            # This write came right after an fsync, and the next one is due in a second.
            if await self._timed_write(key, value) < _LEAST_SECONDS and await self._syncs_each_second():
                return _TOO_EARLY
        except exceptions.NoPermissionError:
            return "Redis forbids its user WAITAOF"
        except exceptions.ResponseError as error:
            is_old = "unknown command" in str(error)
            return "Redis is older than 7.2, and has no WAITAOF" if is_old else f"Redis refuses: {error}"
        except StoreError as error:
            return str(error)
        finally:
            await self.release()
        return ""


async def _release(held: Redis) -> None:
    with contextlib.suppress(exceptions.RedisError, OSError):
        await held.aclose()
