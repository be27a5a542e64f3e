"""TLS that lives, on both fronts: certificates are replaced while clients stay connected."""

import asyncio
import contextlib
import os
import socket
import ssl
import time

import grpc
import pytest
from cryptography import x509
from grpc import aio
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from bench import http2
from service.errors import ConfigError
from tests.certificates import Authority, Issued
from tests.integration.conftest import BOUND_SECONDS, FRONTS, answer, settings

MODEL = "mackey-glass"
LOOK_SECONDS = 0.05  # between two looks of the server at its files
EXPIRY = "streamcell_tls_certificate_expiry_timestamp_seconds"


def replace(folder, **contents):
    """Replaces files by renaming, as an operator should."""
    for name, content in contents.items():
        path = folder / name.replace("_", ".")
        new = path.with_suffix(".new")
        new.write_bytes(content)
        os.replace(new, path)


def replace_pair(folder, issued):
    """Replaces the certificate and then the key."""
    replace(folder, server_pem=issued.certificate)
    replace(folder, server_key=issued.key)


def serial_number(issued):
    """Returns the serial number of a certificate in PEM."""
    return x509.load_pem_x509_certificate(issued.certificate).serial_number


def shown_to_new_connection(port):
    """Returns the serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=BOUND_SECONDS) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True)).serial_number


async def until_shown(port, issued):
    """Waits until new connections are shown a certificate."""
    async with asyncio.timeout(BOUND_SECONDS):
        while await asyncio.to_thread(shown_to_new_connection, port) != serial_number(issued):
            pass


class Client:
    """A connection with TLS, with or without a certificate."""

    def __init__(self, port, authority, issued=None):
        pair = (issued.key, issued.certificate) if issued else (None, None)
        credentials = grpc.ssl_channel_credentials(authority.pem, *pair)
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = aio.secure_channel(f"localhost:{port}", credentials, options=options)
        self.stub = stubs.StreamcellServiceStub(self.channel)

    async def is_let_in(self):
        """Returns whether a call reaches the server."""
        try:
            await self.stub.ListModels(pb.ListModelsRequest(), timeout=BOUND_SECONDS)
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        return True


@contextlib.asynccontextmanager
async def connected(*args):
    """Connects for as long as the block lasts."""
    client = Client(*args)
    async with client.channel:
        yield client


async def is_let_in(*args):
    """Returns whether a call on a new connection reaches the server."""
    async with connected(*args) as client:
        return await client.is_let_in()


@pytest.fixture
def authority():
    """The authority that clients trust."""
    return Authority()


@pytest.fixture
async def running(start, authority, tmp_path):
    """A server with TLS, and the certificate that it was started with."""
    issued = authority.server()
    cert, key = issued.save(tmp_path, "server")
    peer = await start(tls_cert=cert, tls_key=key, reload_seconds=LOOK_SECONDS)
    return peer, issued


class TestRotation:
    """Files that change while a stream is open."""

    async def test_a_new_connection_sees_the_new_certificate_and_a_stream_goes_on(
        self, running, authority, tmp_path
    ):
        """Several times; the stream is the same to the end."""
        peer, _ = running
        port = peer.server.listen.port
        async with connected(port, authority) as client:
            await client.stub.OpenSession(pb.OpenSessionRequest(session_id="s", model=MODEL))
            call = client.stub.Stream()
            for index in range(4):
                await call.write(pb.StreamRequest(step=pb.StepRequest(session_id="s", x=[0.5])))
                assert (await answer(call)).step.step_index == index
                issued = authority.server(days=20 + index)
                replace_pair(tmp_path, issued)
                await until_shown(port, issued)
            async with connected(port, authority) as other:
                assert await other.is_let_in()
            assert (await peer.samples())[EXPIRY, (("file", str(tmp_path / "server.pem")),)] == pytest.approx(
                time.time() + 23 * 86_400, abs=3600
            )

    async def test_a_bad_file_changes_nothing(self, running, authority, tmp_path):
        """A certificate of another key, an ended one, junk, a missing one; then a good one is taken."""
        peer, first = running
        port = peer.server.listen.port
        other = authority.server()
        ended = authority.server(days=-1)
        for bad in (
            Issued(other.certificate, first.key),
            Issued(first.certificate, other.key),
            ended,
            Issued(b"junk", b"junk"),
        ):
            replace_pair(tmp_path, bad)
            await asyncio.sleep(3 * LOOK_SECONDS)
            assert await asyncio.to_thread(shown_to_new_connection, port) == serial_number(first)
            async with connected(port, authority) as client:
                assert await client.is_let_in()
        (tmp_path / "server.key").unlink()
        await asyncio.sleep(3 * LOOK_SECONDS)
        assert await asyncio.to_thread(shown_to_new_connection, port) == serial_number(first)
        replace_pair(tmp_path, other)
        await until_shown(port, other)

    async def test_clients_authorities_are_replaced(self, start, authority, tmp_path):
        """Who is connected stays; who connects needs a certificate of the new authority."""
        old, new = Authority("old"), Authority("new")
        cert, key = authority.server().save(tmp_path, "server")
        replace(tmp_path, clients_pem=old.pem)
        peer = await start(
            tls_cert=cert,
            tls_key=key,
            tls_client_ca=str(tmp_path / "clients.pem"),
            reload_seconds=LOOK_SECONDS,
        )
        port = peer.server.listen.port
        theirs, ours = old.client("alice"), new.client("alice")
        async with connected(port, authority, theirs) as client:
            assert await client.is_let_in()
            assert not await is_let_in(port, authority, ours)
            replace(tmp_path, clients_pem=new.pem)
            async with asyncio.timeout(BOUND_SECONDS):
                while not await is_let_in(port, authority, ours):
                    pass
            assert await client.is_let_in()
            assert not await is_let_in(port, authority, theirs)

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    async def test_a_ticket_of_an_old_authority_opens_nothing(self, start, authority, tmp_path, version):
        """A client resumes its TLS session while its authority is trusted, and not after."""
        old = Authority("old")
        cert, key = authority.server().save(tmp_path, "server")
        replace(tmp_path, clients_pem=old.pem)
        client_ca = str(tmp_path / "clients.pem")
        peer = await start(tls_cert=cert, tls_key=key, tls_client_ca=client_ca, reload_seconds=LOOK_SECONDS)
        context = ssl.create_default_context(cadata=authority.pem.decode())
        context.load_cert_chain(*old.client("alice").save(tmp_path, "alice"))
        context.set_alpn_protocols(["h2"])
        context.maximum_version = version
        port = peer.server.listen.port
        ticket, _ = await asyncio.to_thread(resumed, port, context, None)
        assert await asyncio.to_thread(resumed, port, context, ticket) == (ticket, True)
        replace(tmp_path, clients_pem=Authority("new").pem)
        async with asyncio.timeout(BOUND_SECONDS):
            while (await asyncio.to_thread(resumed, port, context, None))[0] is not None:
                pass
        assert (await asyncio.to_thread(resumed, port, context, ticket))[0] is None


def resumed(port, context, ticket):
    """Connects with a ticket, and returns a ticket and whether the one given counted; None if not let in."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=BOUND_SECONDS) as raw,
            context.wrap_socket(raw, server_hostname="localhost", session=ticket) as connection,
        ):
            connection.sendall(http2.opening())
            if not connection.recv(1000):
                return None, False
            return ticket or connection.session, connection.session_reused
    except OSError:
        return None, False


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize(
    ("flag", "contents"),
    [
        ("--tls-cert", {"server_pem": b"junk"}),
        ("--tls-key", {"server_key": Authority().server().key}),
        ("--tls-client-ca", {"ca_pem": b""}),
    ],
)
async def test_a_server_does_not_start_with_bad_files(front, authority, tmp_path, flag, contents):
    """The same error on both fronts, with the flag and the file."""
    cert, key = authority.server().save(tmp_path, "server")
    replace(tmp_path, ca_pem=authority.pem)
    replace(tmp_path, **contents)
    given = settings(front=front, tls_cert=cert, tls_key=key, tls_client_ca=str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match=rf"^{flag}: {tmp_path}/"):
        await FRONTS[front]().start(given)
