"""Redis in trouble: what is refused at the start, what each call says while serving, and recovery."""

import asyncio
import contextlib
import signal
import subprocess

import pytest

from service.errors import ConfigError
from service.store.base import (
    WRITTEN,
    Claim,
    ClaimStatus,
    StoreError,
    Write,
    WriteKind,
    WriteOutcome,
    WriteStatus,
)
from service.store.redis import RedisStore
from tests import redis_server
from tests.redis_server import RedisServer
from tests.unit.service.store.troubles import (
    OPENING,
    Closing,
    check_away,
    check_refused,
    check_trouble,
    claim_status,
    save,
)


@pytest.fixture
def own_redis(tmp_path):
    """Returns a Redis for this test alone, which needs a password."""
    if redis_server.PROGRAM is None:
        pytest.skip(redis_server.MISSING)
    server = RedisServer(tmp_path, "--requirepass", "s3cret")
    yield server
    server.signal(signal.SIGCONT)
    server.kill()


def url_of(server):
    """Returns a URL with which the Redis of `own_redis` can be opened."""
    return server.url(":s3cret@")


def configure(server, *words):
    """Sends a command to the Redis of `own_redis`, which must answer OK."""
    assert server.command("AUTH", "s3cret", then=words) == "+OK"


@contextlib.asynccontextmanager
async def redis_store(url, **settings):
    """Opens a store."""
    store = RedisStore(url, **settings)
    async with contextlib.aclosing(Closing(store)):
        await store.open()
        yield store


async def test_a_redis_that_is_not_there_is_away():
    """Nobody listens, or the name leads nowhere yet: the message says where the store looked."""
    port = redis_server.free_port()
    await check_away(
        RedisStore(f"redis://127.0.0.1:{port}/1"), f"redis://127.0.0.1:{port}/1", "cannot be reached"
    )
    await check_away(RedisStore("unix:///nowhere/redis.sock"), "cannot be reached")
    await check_away(RedisStore("redis://no..host"), "cannot be reached")


def test_a_certificate_that_is_not_there_is_a_wrong_url():
    """The message names the option, and no part of the URL."""
    with pytest.raises(ConfigError, match="ssl_ca_certs in the URL names no file") as error:
        RedisStore("rediss://:s3cret@127.0.0.1?ssl_ca_certs=/nowhere.pem")
    assert "s3cret" not in str(error.value)
    assert "nowhere" not in str(error.value)


async def test_a_database_that_is_not_there_is_refused(own_redis):
    """Redis has 16 unless it is told otherwise."""
    await check_refused(RedisStore(own_redis.url(":s3cret@", "/999")), "refuses", "DB index")


async def test_a_disk_of_redis_that_is_full_passes():
    """Redis answers MISCONF to every write then, until its disk has room."""
    await check_answer(
        "-MISCONF Redis is configured to save RDB snapshots, but it cannot", "refuses", "MISCONF"
    )


async def check_answer(answer, *words):
    """Opens a store in a Redis that answers everything alike; the store must be away."""

    async def serve(reader, writer):
        while await reader.read(1 << 16):
            writer.write(f"{answer}\r\n".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await check_away(RedisStore(f"redis://127.0.0.1:{port}"), *words)


@pytest.mark.parametrize("credentials", ["", ":wr0ng@", "user:wr0ng@"])
async def test_a_wrong_password_is_refused(own_redis, credentials):
    """The message shows neither the wrong password nor the right one."""
    message = await check_refused(RedisStore(own_redis.url(credentials)), "password")
    assert "wr0ng" not in message
    assert "s3cret" not in message


async def test_another_format_version_is_refused(own_redis):
    """At the start and while serving."""
    async with redis_store(url_of(own_redis)) as store:
        configure(own_redis, "SET", "streamcell:format", "2")
        with pytest.raises(StoreError, match="format version 2"):
            await store.check()
        await check_refused(RedisStore(url_of(own_redis)), "format version 2", "choose another database")


async def test_a_redis_that_dies_is_an_error_until_it_is_back(own_redis):
    """Each call fails while Redis is down; after its restart the store loads its scripts and goes on."""
    async with redis_store(url_of(own_redis)) as store:
        await claim_status(store)
        own_redis.kill()
        await check_trouble(store, "cannot be reached", "see that it runs")
        await check_away(RedisStore(url_of(own_redis)), "cannot be reached")
        own_redis.start()
        assert await claim_status(store) is ClaimStatus.CREATED
        assert await store.write([save(1)]) == [WRITTEN]
        assert await store.expire(2.0, 9) == ["a"]


async def test_a_restart_of_redis_does_not_fail_an_idle_store(own_redis):
    """A store that made no call meanwhile does not fail on its dead connection."""
    async with redis_store(url_of(own_redis)) as store:
        await asyncio.to_thread(own_redis.kill)
        await asyncio.to_thread(own_redis.start)
        assert await claim_status(store) is ClaimStatus.CREATED


async def test_a_redis_that_hangs_is_an_error_until_it_answers(own_redis):
    """Each call fails after a bounded time, and no later call gets a late answer."""
    async with redis_store(url_of(own_redis), timeout_seconds=0.5) as store:
        assert await claim_status(store) is ClaimStatus.CREATED
        own_redis.signal(signal.SIGSTOP)
        await check_trouble(store, "does not answer in time")
        own_redis.signal(signal.SIGCONT)
        assert await recovered(store) is ClaimStatus.TAKEN


async def recovered(store):
    """Waits until a store can be used, and returns the status of a claim."""
    async with asyncio.timeout(redis_server.BOUND_SECONDS):
        while True:
            with contextlib.suppress(StoreError):
                return await claim_status(store)


async def test_a_full_redis_is_an_error_until_there_is_memory(own_redis):
    """Out of memory, Redis refuses what adds something, still deletes, and goes on with more memory."""
    async with redis_store(url_of(own_redis)) as store:
        await claim_status(store)
        configure(own_redis, "CONFIG", "SET", "maxmemory", "1")
        await check_trouble(store, "no memory left", "maxmemory")
        await check_away(RedisStore(url_of(own_redis)), "no memory left")
        configure(own_redis, "CONFIG", "SET", "maxmemory", "0")
        assert await store.write([save(1)]) == [WRITTEN], "nothing had moved"
        configure(own_redis, "CONFIG", "SET", "maxmemory", "1")
        assert await store.write([Write(WriteKind.DELETE, "a", 1, None, 0.0)]) == [WRITTEN]


async def test_a_read_only_replica_is_an_error_until_it_is_primary(own_redis):
    """A replica refuses writes; the same server as primary takes them."""
    async with redis_store(url_of(own_redis)) as store:
        await claim_status(store)
        configure(own_redis, "REPLICAOF", "127.0.0.1", redis_server.free_port())
        await check_trouble(store, "read-only replica", "name the primary")
        await check_away(RedisStore(url_of(own_redis)), "read-only replica")
        configure(own_redis, "REPLICAOF", "NO", "ONE")
        assert await store.write([save(1)]) == [WRITTEN]


async def test_a_failover_behind_one_address_is_got_over(tmp_path):
    """The address leads to the new primary, and open connections to the former one: those are left."""
    if redis_server.PROGRAM is None:
        pytest.skip(redis_server.MISSING)
    for name in "ab":
        (tmp_path / name).mkdir()
    former, new = (RedisServer(tmp_path / name) for name in "ab")
    proxy = ReplyDroppingProxy(former.port)
    try:
        async with proxy.listening() as url, redis_store(url.replace(":s3cret@", "")) as store:
            await claim_status(store)
            assert new.command("REPLICAOF", "127.0.0.1", former.port) == "+OK"
            await until_replicated(new, "streamcell:session:a")
            assert new.command("REPLICAOF", "NO", "ONE") == "+OK"
            assert former.command("REPLICAOF", "127.0.0.1", new.port) == "+OK"
            proxy.port = new.port
            with pytest.raises(StoreError, match="read-only replica"):
                await store.write([save(1)])
            assert await store.write([save(1)]) == [WRITTEN]
            await store.check()
    finally:
        former.kill()
        new.kill()


async def until_replicated(replica, key):
    """Waits until a replica has a key."""
    async with asyncio.timeout(redis_server.BOUND_SECONDS):
        while replica.command("EXISTS", key) != ":1":  # noqa: ASYNC110 (a replica can only be asked)
            await asyncio.sleep(0.01)


@pytest.fixture
def plain_redis(tmp_path):
    """A Redis of its own, without a password."""
    if redis_server.PROGRAM is None:
        pytest.skip(redis_server.MISSING)
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
async def test_a_redis_that_evicts_sessions_is_refused(plain_redis, policy):
    """Before the first session is lost, and with what to do. A policy for volatile keys touches no row."""
    assert plain_redis.command("CONFIG", "SET", "maxmemory-policy", policy) == "+OK"
    await check_refused(RedisStore(plain_redis.url()), f"maxmemory-policy is {policy}", "noeviction")
    for harmless in ("volatile-lru", "noeviction"):
        assert plain_redis.command("CONFIG", "SET", "maxmemory-policy", harmless) == "+OK"
        async with redis_store(plain_redis.url()):
            pass


async def test_a_cluster_is_refused(tmp_path):
    """With a word for what it is, rather than for the slot that a key is in."""
    if redis_server.PROGRAM is None:
        pytest.skip(redis_server.MISSING)
    cluster = redis_server.RedisServer(tmp_path, "--cluster-enabled", "yes")
    try:
        await check_refused(RedisStore(cluster.url()), "is a cluster", "name a server of its own")
    finally:
        cluster.kill()


async def test_a_user_who_may_run_no_scripts_is_refused(own_redis):
    """At the start: such a server would serve and open no session."""
    configure(own_redis, "ACL", "SETUSER", "plain", "on", ">pl4in", "~*", "+@all", "-@scripting")
    await check_refused(RedisStore(own_redis.url("plain:pl4in@")), "forbids its user", "allow it scripts")


async def test_a_redis_that_appends_to_no_file_is_told(plain_redis, caplog):
    """What it loses when it restarts is said once, at the start."""
    caplog.set_level("WARNING")
    async with redis_store(plain_redis.url()):
        pass
    (record,) = [each for each in caplog.records if each.getMessage() == "store_not_persistent"]
    assert "appendonly is no" in record.fields["why"]
    caplog.clear()
    assert plain_redis.command("CONFIG", "SET", "appendonly", "yes") == "+OK"
    async with redis_store(plain_redis.url()):
        pass
    assert not caplog.records


async def test_a_user_without_rights_is_refused(own_redis):
    """The message quotes the server on what the user of the URL may not do."""
    configure(own_redis, "ACL", "SETUSER", "reader", "on", ">r3ad", "~*", "+get")
    message = await check_refused(RedisStore(own_redis.url("reader:r3ad@")), "forbids its user", "set")
    assert "r3ad@" not in message


class ReplyDroppingProxy:
    """A proxy between store and server that passes on replies, or drops them while `drops_replies`."""

    def __init__(self, port):
        self.port = port
        self.drops_replies = False
        self.tasks = set()

    @contextlib.asynccontextmanager
    async def listening(self):
        """Listens for as long as the block lasts, and yields its URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"redis://:s3cret@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            await asyncio.gather(*self.tasks)

    async def _serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.gather(
            self._pass(reader, server_writer), self._pass(server_reader, writer, are_replies=True)
        )

    async def _pass(self, reader, writer, *, are_replies=False):
        with contextlib.suppress(ConnectionError):
            while (some := await reader.read(1 << 16)) and not (are_replies and self.drops_replies):
                writer.write(some)
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_call_whose_reply_is_lost_can_be_repeated(own_redis):
    """Redis did the work and the store got no reply: the repeated call finds the work and adds no owner."""
    proxy = ReplyDroppingProxy(own_redis.port)
    async with proxy.listening() as url, redis_store(url) as store:

        async def call_without_reply(call):
            proxy.drops_replies = True
            with pytest.raises(StoreError, match="cannot be reached"):
                await call
            proxy.drops_replies = False

        await claim_status(store)
        await call_without_reply(store.claim([OPENING]))
        (claimed,) = await store.claim([OPENING])
        assert (claimed.status, claimed.epoch) == (ClaimStatus.TAKEN, 3)
        release = Write(WriteKind.RELEASE, "a", 3, b"end", 1.0)
        for one, again in ((save(3), True), (release, True)):
            await call_without_reply(store.write([one]))
            assert (await store.write([one]) == [WRITTEN]) is again
        (claimed,) = await store.claim([OPENING])
        assert (claimed.epoch, claimed.record) == (4, b"end")
        gone = Write(WriteKind.DELETE, "a", 4, None, 0.0)
        await call_without_reply(store.write([gone]))
        assert await store.write([gone]) == [WriteOutcome(WriteStatus.GONE, 4)]


async def test_a_call_that_is_cancelled_leaves_no_reply_behind(own_redis):
    """The next caller gets the answer to its own call."""
    async with redis_store(url_of(own_redis)) as store:
        await claim_status(store)
        own_redis.signal(signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(store.write([save(1)]), 0.05)
        own_redis.signal(signal.SIGCONT)
        (claimed,) = await store.claim([OPENING])
        assert (claimed.status, claimed.epoch) == (ClaimStatus.TAKEN, 2)


async def test_a_redis_that_loads_its_rows_is_away():
    """Redis answers LOADING to every command then: the message says to wait."""
    await check_answer("-LOADING Redis is loading the dataset in memory", "loading", "wait")


async def test_scripts_that_redis_forgot_are_loaded_again(own_redis):
    """Redis may drop its scripts at any time, and no call fails."""
    async with redis_store(url_of(own_redis)) as store:
        await claim_status(store)
        configure(own_redis, "SCRIPT", "FLUSH")
        assert await claim_status(store) is ClaimStatus.TAKEN


@pytest.fixture
def tls_url(tmp_path):
    """Returns the URL of a Redis that speaks TLS, with cert.pem in the test's folder."""
    if redis_server.PROGRAM is None:
        pytest.skip(redis_server.MISSING)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem")
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    certificate = ["openssl", "req", "-x509", *key, "-out", "cert.pem", "-days", "2", *name]
    subprocess.run(certificate, cwd=tmp_path, check=True, capture_output=True)
    port = redis_server.free_port()
    files = ("--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem")
    server = RedisServer(tmp_path, "--tls-port", str(port), *files, "--tls-auth-clients", "no")
    yield f"rediss://localhost:{port}"
    server.kill()


async def test_redis_over_tls(tls_url, tmp_path):
    """With rediss:// the certificate of Redis is checked: its authority, named in the URL, and its host."""
    async with redis_store(f"{tls_url}?ssl_ca_certs={tmp_path}/cert.pem") as store:
        assert await claim_status(store) is ClaimStatus.CREATED
    await check_refused(RedisStore(tls_url), "certificate verify failed")
    other = f"{tls_url}?ssl_ca_certs={tmp_path}/cert.pem".replace("localhost", "127.0.0.1")
    await check_refused(RedisStore(other), "is not the server that its certificate says")


async def test_an_owner_that_is_not_heard_of_counts_as_dead_after_a_doubt(plain_redis):
    """Not at once: a server that has just restarted has heard of nobody yet."""
    async with redis_store(plain_redis.url()) as ours, redis_store(plain_redis.url()) as theirs:
        await theirs.claim([OPENING])
        asking = Claim(OPENING.key, may_create=False, may_find=True, may_take_over=False, asks=True)
        plain_redis.command("DEL", f"streamcell:alive:{theirs.owner}")  # as time does
        (first,) = await ours.claim([asking])
        assert first.status is ClaimStatus.OWNED_ELSEWHERE
        await theirs.asked_for()  # it is heard of again
        assert plain_redis.command("EXISTS", f"streamcell:doubt:{theirs.owner}") == ":0"
        plain_redis.command("DEL", f"streamcell:alive:{theirs.owner}")
        await ours.claim([asking])
        plain_redis.command("PEXPIRE", f"streamcell:doubt:{theirs.owner}", 58_000)  # as time does
        (last,) = await ours.claim([asking])
        assert (last.status, last.epoch) == (ClaimStatus.TAKEN, 2)


async def test_a_user_without_channels_has_a_store_all_the_same(own_redis):
    """Others are not heard, so sessions are taken over after a while, as by a server that does not answer."""
    configure(own_redis, "ACL", "SETUSER", "deaf", "on", ">d3af", "~*", "+@all", "resetchannels")
    url = own_redis.url("deaf:d3af@")
    async with redis_store(url) as ours, redis_store(url) as theirs:
        await theirs.claim([OPENING])
        asking = Claim(OPENING.key, may_create=False, may_find=True, may_take_over=False, asks=True)
        (found,) = await ours.claim([asking])
        assert found.status is ClaimStatus.OWNED_ELSEWHERE
        with pytest.raises(StoreError, match="forbids its user"):
            await theirs.asked_for()
        (found,) = await ours.claim([asking])
        assert found.status is ClaimStatus.OWNED_ELSEWHERE
