"""TLS and tokens as an operator meets them: rotation while clients work, and clients of the wrong kind."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket

import grpc
import pytest
from grpc import aio
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from service.identity.tokens import issue
from tests.certificates import Authority, Issued
from tests.e2e.conftest import BOUND_SECONDS
from tests.e2e.survival.fleet import IS_FULL
from tests.integration.test_tls import serial_number, shown_to_new_connection

ROUNDS = 8 if IS_FULL else 2
NUM_STREAMS, NUM_CALLERS = 4, 3
SECONDS_BETWEEN_LOOKS = "0.2"


@dataclasses.dataclass
class Shown:
    """What a client shows of itself."""

    certificate: Issued
    token: str

    @property
    def metadata(self):
        """The metadata of a call."""
        return (("authorization", f"Bearer {self.token}"),)


class Door:
    """A server's files, what clients must show now, and ways to connect."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = Authority("of the server")
        self.clients = Authority("of clients")
        self.server = self.authority.server()
        self.token, self.record = issue("alice", float("inf"))
        self.put_server(self.server)
        self.put("clients.pem", self.clients.pem)
        self.put("tokens", self.record.line().encode())
        self.shown = Shown(self.clients.client("alice"), self.token)
        self.port = 0

    @property
    def flags(self):
        """The server's flags."""
        files = {"cert": "server.pem", "key": "server.key", "client-ca": "clients.pem"}
        named = [part for name, file in files.items() for part in (f"--tls-{name}", str(self.folder / file))]
        return [*named, "--tokens", str(self.folder / "tokens"), "--reload-seconds", SECONDS_BETWEEN_LOOKS]

    def put(self, name, content):
        """Replaces a file by renaming."""
        new = self.folder / f"{name}.new"
        new.write_bytes(content)
        os.replace(new, self.folder / name)

    def put_server(self, issued):
        """Replaces the server's certificate, and then its key."""
        self.put("server.pem", issued.certificate)
        self.put("server.key", issued.key)

    def channel(self, shown):
        """Returns a channel of its own, over a connection of its own."""
        pair = (shown.certificate.key, shown.certificate.certificate)
        credentials = grpc.ssl_channel_credentials(self.authority.pem, *pair)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        return aio.secure_channel(f"localhost:{self.port}", credentials, options=options)

    async def refusal(self, shown):
        """Connects anew and returns the code with which a call is refused; None if it is answered."""
        async with self.channel(shown) as channel:
            stub = stubs.StreamcellServiceStub(channel)
            try:
                await stub.ListModels(pb.ListModelsRequest(), metadata=shown.metadata, timeout=BOUND_SECONDS)
            except aio.AioRpcError as error:
                return error.code().name
        return None


class Load:
    """Streams that last, calls on connections that last, and newcomers; each failure is kept."""

    def __init__(self, door):
        self._door = door
        self._is_over = False
        self.failures = []
        self.counts = {}  # what each worker has done, by its name

    async def run(self):
        """Works until it is told to stop."""
        names = [("stream", n) for n in range(NUM_STREAMS)] + [("call", n) for n in range(NUM_CALLERS)]
        workers = [self._work(kind, f"{kind}-{number}") for kind, number in names]
        await asyncio.gather(*workers, self._work("newcomer", "newcomer"))

    def stop(self):
        """Ends the work."""
        self._is_over = True

    async def turn(self):
        """Waits until each worker has done something that began after this call."""
        before = dict(self.counts)
        async with asyncio.timeout(BOUND_SECONDS):
            while any(self.counts[name] < count + 2 for name, count in before.items()):
                assert not self.failures
                await asyncio.sleep(0.01)

    async def _work(self, kind, name):
        self.counts[name] = 0
        try:
            await getattr(self, f"_{kind}")(name)
        except (aio.AioRpcError, AssertionError) as failure:
            self.failures.append((name, failure))

    async def _stream(self, name):
        shown = self._door.shown
        async with self._door.channel(shown) as channel:
            stub = stubs.StreamcellServiceStub(channel)
            await self._open(stub, name, shown)
            call = stub.Stream(metadata=shown.metadata)
            while not self._is_over:
                await call.write(pb.StreamRequest(step=pb.StepRequest(session_id=name, x=[0.5])))
                response = await call.read()
                assert response is not aio.EOF, await call.code()
                assert response.step.step_index == self.counts[name]
                self.counts[name] += 1
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.OK

    async def _call(self, name):
        async with self._door.channel(self._door.shown) as channel:
            stub = stubs.StreamcellServiceStub(channel)
            await self._open(stub, name, self._door.shown)
            while not self._is_over:
                step = pb.StepRequest(session_id=name, x=[0.5])
                response = await stub.Step(step, metadata=self._door.shown.metadata)
                assert response.step_index == self.counts[name]
                self.counts[name] += 1

    async def _newcomer(self, name):
        while not self._is_over:
            assert await self._door.refusal(self._door.shown) is None
            self.counts[name] += 1

    @staticmethod
    async def _open(stub, name, shown):
        request = pb.OpenSessionRequest(session_id=name, model="mackey-glass")
        await stub.OpenSession(request, metadata=shown.metadata)


class Operator:
    """Replaces files, and waits until every worker has taken or refused them."""

    def __init__(self, door, load, server, num_workers):
        self._door, self._load, self._server = door, load, server
        self._num_workers = num_workers
        self._num_authorities = 0

    async def until(self, event, setting):
        """Waits until each worker has logged an event about a file."""
        missing = self._num_workers
        while missing:
            found = await asyncio.to_thread(self._server.event, event)
            missing -= found["setting"] == setting

    async def replace_server(self):
        """Rotates the server's certificate; new connections see it."""
        issued = self._door.authority.server()
        self._door.put_server(issued)
        await self.until("file_reloaded", "--tls-key")
        num_seen = 0
        async with asyncio.timeout(BOUND_SECONDS):
            while num_seen < 2 * self._num_workers:
                found = await asyncio.to_thread(shown_to_new_connection, self._door.port)
                num_seen = num_seen + 1 if found == serial_number(issued) else 0

    async def replace_clients(self):
        """Rotates the authority of clients: both are trusted for a while; then the old one is not."""
        self._num_authorities += 1  # authorities have different names
        old, new = self._door.clients, Authority(f"of clients, number {self._num_authorities}")
        before = self._door.shown
        self._door.put("clients.pem", old.pem + new.pem)
        await self.until("file_reloaded", "--tls-client-ca")
        await self._until_let_in(Shown(new.client("alice"), before.token))
        self._door.shown = dataclasses.replace(before, certificate=new.client("alice"))
        self._door.clients = new
        await self._load.turn()
        self._door.put("clients.pem", new.pem)
        await self.until("file_reloaded", "--tls-client-ca")
        await self._until_refused(dataclasses.replace(self._door.shown, certificate=before.certificate))

    async def replace_token(self):
        """Rotates the token, with SIGHUP; the old one is refused once it is taken out."""
        before = self._door.shown
        token, record = issue("alice", float("inf"))
        self._door.put("tokens", f"{self._door.record.line()}\n{record.line()}\n".encode())
        self._server.signal(signal.SIGHUP)
        await self.until("file_reloaded", "--tokens")
        self._door.shown = dataclasses.replace(before, token=token)
        self._door.record = record
        await self._load.turn()
        self._door.put("tokens", record.line().encode())
        self._server.signal(signal.SIGHUP)
        await self.until("file_reloaded", "--tokens")
        for _ in range(2 * self._num_workers):
            old = dataclasses.replace(self._door.shown, token=before.token)
            assert await self._door.refusal(old) == "UNAUTHENTICATED"

    async def break_files(self):
        """Puts wrong files in place for a while; nothing changes."""
        files = ("server.pem", "server.key", "clients.pem", "tokens")
        good = {name: (self._door.folder / name).read_bytes() for name in files}
        for name, setting, content in (
            ("server.pem", "--tls-cert", b"junk"),
            ("server.pem", "--tls-cert", self._door.authority.server(days=-1).certificate),
            ("server.key", "--tls-key", self._door.authority.server().key),
            ("clients.pem", "--tls-client-ca", b""),
            ("tokens", "--tokens", b"junk"),
        ):
            self._door.put(name, content)
            await self.until("file_not_reloaded", setting)
            await self._load.turn()
            self._door.put(name, good[name])
            await self.until("file_reloaded", setting)

    async def _until_let_in(self, shown):
        """Waits until a client is let in by every worker: Envoy takes new files a moment after the server."""
        await self._until(shown, None)

    async def _until_refused(self, shown):
        await self._until(shown, "UNAVAILABLE")

    async def _until(self, shown, wanted):
        num_seen = 0
        async with asyncio.timeout(BOUND_SECONDS):
            while num_seen < 2 * self._num_workers:
                num_seen = num_seen + 1 if await self._door.refusal(shown) == wanted else 0


@pytest.mark.parametrize("num_workers", [1, 2])
async def test_rotation_under_load_drops_nothing(start_server, tmp_path, num_workers):
    """Certificates, authorities and tokens change several times, with wrong files in between."""
    door = Door(tmp_path)
    server = start_server(*door.flags, "--workers", str(num_workers))
    listen = (await asyncio.to_thread(server.event, "serving"))["listen"]
    door.port = int(listen.rpartition(":")[2])
    load = Load(door)
    operator = Operator(door, load, server, num_workers)
    running = asyncio.create_task(load.run())
    while len(load.counts) < NUM_STREAMS + NUM_CALLERS + 1 or not all(load.counts.values()):
        assert not load.failures
        await asyncio.sleep(0.01)
    for _ in range(ROUNDS):
        await operator.replace_server()
        await operator.replace_token()
        await operator.break_files()
        await operator.replace_clients()
        assert load.failures == []
    await load.turn()
    load.stop()
    await running
    assert load.failures == []
    server.signal()
    assert await asyncio.to_thread(server.wait) == 0
    assert "traceback" not in "".join(server.lines)


class TestWrongKind:
    """Clients that speak plain text to TLS, and the reverse; on the front that can know."""

    @pytest.fixture
    def front(self):
        """Returns the front that counts such clients."""
        return "envoy"

    def test_plain_text_on_a_port_with_tls_is_told_once_a_minute(self, start_server, tmp_path):
        """With what helps; a client of HTTP/1 gets an answer, one of HTTP/2 no chance to send its token."""
        cert, key = Authority().server().save(tmp_path, "server")
        server = start_server("--tls-cert", cert, "--tls-key", key)
        port = int(server.event("serving")["listen"].rpartition(":")[2])
        for _ in range(3):
            answer = said_in_plain_text(port, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert answer.endswith(b"this port speaks TLS: use https, or a client's option for TLS\n")
        answer = said_in_plain_text(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")  # no settings of HTTP/2
        told = server.event("connections_refused")
        assert (told["kind"], told["connections"]) == ("plain_text", 4)
        assert "--tls" in told["why"]
        server.signal()
        assert server.wait() == 0
        assert sum("connections_refused" in line for line in server.lines) == 1

    def test_tls_on_a_port_without_is_told(self, start_server):
        """With what helps."""
        server = start_server()
        port = int(server.event("serving")["listen"].rpartition(":")[2])
        with contextlib.suppress(OSError):
            shown_to_new_connection(port)
        told = server.event("connections_refused")
        assert (told["kind"], told["connections"]) == ("tls", 1)
        assert "--tls-cert" in told["why"]


def said_in_plain_text(port, request):
    """Sends bytes and returns all that comes back."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=BOUND_SECONDS) as connection:
        connection.sendall(request)
        while received := connection.recv(65536):
            found += received
            if b"speaks TLS" in found:
                break
    return found
