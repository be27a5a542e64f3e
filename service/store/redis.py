"""A store in a Redis server, which servers on many machines may share.

Owns the connections. Scripts do the work, up to 100 rows in each; Redis runs one script at a time, so every
row changes atomically. The server may be a single one or a primary with replicas, not a cluster. It needs
`maxmemory-policy noeviction`: a row that Redis evicts is a session lost. Does not know how a script works.
"""

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast
from urllib.parse import SplitResult, parse_qs, urlsplit

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from service.errors import ConfigError
from service.store import redis_scripts
from service.store.base import (
    WRITTEN,
    Claim,
    Claimed,
    ClaimStatus,
    StoreError,
    Write,
    WriteOutcome,
    WriteStatus,
    WrongStoreError,
    new_owner,
)
from service.store.redis_disk import DiskWait
from service.telemetry import log

_ROW = "streamcell:session:"
_USED = "streamcell:used"
_FORMAT = "streamcell:format"
_FORMAT_VERSION = b"1"

_ASKED = "streamcell:asked:"  # and an owner: the channel on which the owner is asked for rows

_TIMEOUT_SECONDS = 3.0
_LISTEN_SECONDS = 1.0  # at a time, on the owner's channel; three times as long without a sign, and it is dead
_FAREWELL_SECONDS = 0.5  # for a last word, which spares others the wait until this owner counts as dead
_MAX_CONNECTIONS = 8
_CHUNK_ROWS = 100  # rows a script; the server's other clients wait for them, about a millisecond

_IS_CLUSTER = "is a cluster, of which no store can be made: name a server of its own"
# What an error means here, whether it passes, and what to do. The first entry that fits counts.
_Advice = tuple[type[exceptions.RedisError], type[StoreError], str]
_ADVICE: Sequence[_Advice] = (
    (
        exceptions.AuthenticationError,
        WrongStoreError,
        "refuses the user or the password: correct them in the URL",
    ),
    (exceptions.BusyLoadingError, StoreError, "is still loading its rows: wait until it is done"),
    (
        exceptions.NoPermissionError,
        WrongStoreError,
        "forbids its user what a store does: allow it scripts and streamcell:*",
    ),
    (exceptions.AskError, WrongStoreError, _IS_CLUSTER),
    (exceptions.MasterDownError, StoreError, "is a replica without its primary: name the primary"),
    (exceptions.ClusterError, WrongStoreError, _IS_CLUSTER),
    (exceptions.OutOfMemoryError, StoreError, "has no memory left: raise its maxmemory"),
    (exceptions.ReadOnlyError, StoreError, "is a read-only replica: name the primary"),
    (exceptions.TimeoutError, StoreError, "does not answer in time: see whether it is overloaded or stopped"),
    (exceptions.ConnectionError, StoreError, "cannot be reached: see that it runs, and where"),
)
# Other errors that pass, by the word that Redis begins them with: its disk is full, it lacks replicas, a long
# script of somebody's runs.
_PASSING = ("MISCONF ", "NOREPLICAS ", "BUSY ")

# What a server says that used to be the primary, or that is not one yet: its address may lead elsewhere by
# now.
_STALE = (exceptions.ReadOnlyError, exceptions.AskError, exceptions.ClusterError, exceptions.BusyLoadingError)

_FORM = "redis[s]://[USER:PASSWORD@]HOST[:PORT][/DATABASE] or unix://[USER:PASSWORD@]/PATH[?db=DATABASE]"
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_OPTIONS = {*_FILES, "ssl_cert_reqs", "ssl_check_hostname"}


class RedisStore:
    """The store in the server that a URL names, as `base.Store` describes it.

    `clock` returns Unix seconds, for new rows. `timeout_seconds` limits each exchange with the server.

    Raises:
        ConfigError: the URL is wrong. No message, here or later, repeats the URL: it may hold a password.
    """

    def __init__(
        self, url: str, *, clock: Callable[[], float] = time.time, timeout_seconds: float = _TIMEOUT_SECONDS
    ) -> None:
        self.owner = new_owner()
        self._name = _checked(url)
        self._clock = clock
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_MAX_CONNECTIONS,
            timeout=timeout_seconds,  # how long to wait for a free connection
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            # No call is repeated: a claim that may create and not find would meet the row that it created.
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # every server speaks it, and it has no pushed notices between the replies
        )
        self._redis = Redis.from_pool(pool)
        self._claim = self._redis.register_script(redis_scripts.CLAIM)
        self._write = self._redis.register_script(redis_scripts.WRITE)
        self._expire = self._redis.register_script(redis_scripts.EXPIRE)
        self._beat = self._redis.register_script(redis_scripts.BEAT)
        self._channel: PubSub | None = None
        self._disk = DiskWait(self._redis, timeout_seconds)
        self.must_sync = False
        self.disk_problem = "it is not open"

    def __str__(self) -> str:
        return self._name

    async def open(self) -> None:
        """Connects, checks the server, and marks a new database with the format's version."""
        try:
            await self.check()
            await self._check_server()
        except WrongStoreError as error:
            raise ConfigError(f"--store: {error}") from error

    async def _check_server(self) -> None:
        """Checks that the server is no cluster, runs scripts and evicts no rows; looks at its disk.

        Raises:
            WrongStoreError: the server cannot be a store.
        """
        async with self._explaining():
            found = await self._redis.info()
            for script in (self._claim, self._write, self._expire):  # over no rows: nothing changes
                await script([_USED], [self.owner, "0"])
            await self._show_life()
        if int(found.get("cluster_enabled", 0)):
            raise WrongStoreError(f"{self} {_IS_CLUSTER}")
        policy = str(found.get("maxmemory_policy", "noeviction"))
        if policy.startswith("allkeys"):
            raise WrongStoreError(
                f"{self} evicts rows when its memory is full, and a session with each (maxmemory-policy is"
                f" {policy}): set it to noeviction"
            )
        if not int(found.get("aof_enabled", 0)):
            self.disk_problem = "Redis appends nothing to a file (appendonly is no)"
            log.warning(
                "store_not_persistent",
                store=str(self),
                why=self.disk_problem,
                effect="what it was told since its last dump is lost when it restarts",
            )
        else:
            async with self._explaining():
                self.disk_problem = await self._disk.problem(_FORMAT, _FORMAT_VERSION)
        self.must_sync = not self.disk_problem

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed]:
        """Claims rows, up to 100 in each exchange with the server."""
        now = repr(self._clock())
        claimed: list[Claimed] = []
        async with self._explaining():
            for start in range(0, len(claims), _CHUNK_ROWS):
                chunk = claims[start : start + _CHUNK_ROWS]
                fields = [field for one in chunk for field in _claim_fields(one)]
                replies = await self._claim(_keys(chunk), [self.owner, now, *fields])
                claimed += [_claimed(*reply) for reply in replies]
        return claimed

    async def write(self, writes: Sequence[Write], *, to_disk: bool = False) -> list[WriteOutcome]:
        """Writes rows, up to 100 in each exchange with the server."""
        written: list[WriteOutcome] = []
        client = self._disk.connection() if to_disk else self._redis
        try:
            async with self._explaining():
                for start in range(0, len(writes), _CHUNK_ROWS):
                    chunk = writes[start : start + _CHUNK_ROWS]
                    fields = [field for one in chunk for field in _fields(one)]
                    replies = await self._write(_keys(chunk), [self.owner, *fields], client=client)
                    written += map(_written, replies)
        except BaseException:
            if to_disk:
                await self._disk.release()
            raise
        return written

    async def sync(self) -> None:
        """Asks the server on the connection of the writes until they are on its disk, by WAITAOF."""
        async with self._explaining():
            await self._disk.wait()

    async def expire(self, before: float, limit: int) -> list[str]:
        """Deletes rows last used before an instant, up to 100 in each exchange with the server."""
        expired: list[bytes] = []
        async with self._explaining():
            while num_left := min(_CHUNK_ROWS, limit - len(expired)):
                rows = await self._redis.zrangebyscore(_USED, "-inf", f"({before!r}", 0, num_left)
                if not rows:
                    break
                # A row that was used since the search stays, and the next search does not find it.
                expired += await self._expire([*rows, _USED], [repr(before)])
        return [row.decode().removeprefix(_ROW) for row in expired]

    async def asked_for(self) -> list[str]:
        """Shows that this owner lives, and listens on its channel for a second."""
        async with self._explaining():
            await self._show_life()
            try:
                return await self._listen()
            except BaseException:
                await self._stop_listening()
                raise

    async def _show_life(self, *, is_alive: bool = True) -> None:
        await self._beat([], [self.owner, int(is_alive)])

    async def _listen(self) -> list[str]:
        if self._channel is None:
            self._channel = self._redis.pubsub(ignore_subscribe_messages=True)
            await self._channel.subscribe(_ASKED + self.owner)
        keys, seconds = set(), _LISTEN_SECONDS
        while (message := await self._channel.get_message(timeout=seconds)) is not None:
            keys.add(message["data"].decode())
            seconds = 0.0  # for what has come already
        return list(keys)

    async def _stop_listening(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            with contextlib.suppress(exceptions.RedisError, OSError):
                await channel.aclose()  # type: ignore[no-untyped-call]  # untyped in redis-py

    async def incarnation(self) -> str:
        """Returns the server's run_id: a new run, or another server, starts from what is on its disk."""
        async with self._explaining():
            return str((await self._redis.info("server"))["run_id"])

    async def check(self) -> None:
        """Writes the mark of the format's version: the server refuses it whenever it refuses rows."""
        async with self._explaining():
            await self._redis.set(_FORMAT, _FORMAT_VERSION, nx=True)
            version = await self._redis.get(_FORMAT)
        if version != _FORMAT_VERSION:
            theirs = version.decode(errors="replace") if isinstance(version, bytes) else "none"
            raise WrongStoreError(
                f"{self} has format version {theirs}, this server knows {_FORMAT_VERSION.decode()}: "
                "choose another database"
            )

    async def close(self) -> None:
        """Disconnects."""
        await self._stop_listening()
        with contextlib.suppress(exceptions.RedisError, OSError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self._show_life(is_alive=False)
        await self._disk.release()
        with contextlib.suppress(exceptions.RedisError, OSError):
            await self._redis.aclose()

    @contextlib.asynccontextmanager
    async def _explaining(self) -> AsyncIterator[None]:
        """Turns errors of the Redis client into StoreError, with advice.

        After a failover the address leads to another server, and open connections to the former primary: they
        are closed, so that the next call connects anew.
        """
        try:
            yield
        except exceptions.RedisError as error:
            if isinstance(error, _STALE):
                await self._redis.connection_pool.disconnect()
            kind, advice = _meaning(error)
            raise kind(f"{self} {advice} ({error})") from error
        except (OSError, UnicodeError) as error:  # wrong certificates; impossible host names
            raise StoreError(f"{self} cannot be reached: {error}") from error


def _meaning(error: exceptions.RedisError) -> tuple[type[StoreError], str]:
    """Returns what an error of the client means here, and what to do."""
    if isinstance(error.__context__, ssl.SSLCertVerificationError):
        return (
            WrongStoreError,
            "is not the server that its certificate says: correct ssl_ca_certs or the host",
        )
    for found, kind, advice in _ADVICE:
        if isinstance(error, found):
            return kind, advice
    return (StoreError if str(error).startswith(_PASSING) else WrongStoreError), "refuses"


def _checked(url: str) -> str:
    """Returns a URL's name for messages: the URL without user, password and options.

    Raises:
        ConfigError: the URL has not the right form. The message repeats no part of the URL: a "/" in a
            password moves the password into another part.
    """
    try:
        parts = urlsplit(url)
        is_right = _is_right(parts)
    except ValueError:
        is_right = False
    if is_right and (option := _missing_file(parts)):
        raise ConfigError(f"--store: {option} in the URL names no file that this server can read")
    if not is_right:
        raise ConfigError(
            f"--store: the URL is not {_FORM}; special characters in a password are written as %XX; "
            f"options of rediss are {', '.join(sorted(_OPTIONS))}"
        )
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_right(parts: SplitResult) -> bool:
    options = parse_qs(parts.query, strict_parsing=bool(parts.query))
    if parts.fragment or parts.port == 0:
        return False
    if parts.scheme == "unix":
        return bool(parts.path) and not parts.hostname and options.keys() <= {"db"}
    database = parts.path.removeprefix("/")
    is_database = not database or (database.isascii() and database.isdecimal())
    return bool(parts.hostname) and is_database and options.keys() <= _OPTIONS


def _missing_file(parts: SplitResult) -> str:
    """Returns the first option that names a file which is not there; empty if all are."""
    options = parse_qs(parts.query)
    return next((each for each in _FILES if each in options and not os.access(options[each][0], os.R_OK)), "")


def _keys(rows: Sequence[Claim] | Sequence[Write]) -> list[str]:
    return [*(_ROW + row.key for row in rows), _USED]


def _claim_fields(claim: Claim) -> tuple[str | int | bytes, ...]:
    letters = "c" * claim.may_create + "f" * claim.may_find + "t" * claim.may_take_over
    letters += "r" * (claim.record is not None) + "a" * claim.asks
    return letters, claim.least_epoch, claim.most_epoch, claim.record or b""


def _claimed(status: bytes, epoch: int, used_at: bytes, record: bytes | None) -> Claimed:
    return Claimed(ClaimStatus(status.decode()), epoch, record, float(used_at))


def _written(reply: "int | tuple[bytes, int, int]") -> WriteOutcome:
    if reply == 1:
        return WRITTEN
    status, epoch, is_own = cast("tuple[bytes, int, int]", reply)
    return WriteOutcome(WriteStatus(status.decode()), epoch, is_own == 1)


def _fields(write: Write) -> tuple[str | int | bytes, ...]:
    has_record = write.record is not None
    return write.kind.value, write.epoch, repr(write.used_at), int(has_record), write.record or b""
