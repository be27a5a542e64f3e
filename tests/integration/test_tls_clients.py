"""Clients over TLS, on both fronts: who comes in, and the words for who does not."""

import asyncio
import contextlib
import importlib.util
import json
import os
import pathlib
import sys

import pytest
from streamcell import Client, ConnectionLost, RetryPolicy, Tls, Unauthenticated

from loadtest import options as options_of
from loadtest.driver import generate
from loadtest.errors import LoadtestError
from service.identity.tokens import issue
from tests.certificates import Authority, common_name
from tests.integration.conftest import BOUND_SECONDS, ROOT, EnvoyServer, settings

ONCE = RetryPolicy(max_attempts=1)


def healthcheck(*arguments, **environment):
    """Runs the container's health check and returns its status."""
    spec = importlib.util.spec_from_file_location("healthcheck", ROOT / "deploy" / "healthcheck.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(list(arguments), environment)


class Doors:
    """Three servers: in plain text, with TLS, and with client certificates; and the files for them."""

    def __init__(self, folder):
        self.folder = folder
        self.authority, self.other = Authority(), Authority("another")
        self.cert, self.key = self.authority.server().save(folder, "server")
        (folder / "ca.pem").write_bytes(self.authority.pem)
        (folder / "other.pem").write_bytes(self.other.pem)
        self.ca = str(folder / "ca.pem")
        self.alice = self.authority.client("alice")
        self.alice.save(folder, "alice")
        token, record = issue("alice", float("inf"))
        self.token = token
        (folder / "tokens").write_text(record.line())
        (folder / "token").write_text(token)

    @contextlib.contextmanager
    def broken_certificate(self):
        """Puts something else into the file of the servers' certificate for as long as the block lasts."""
        path = pathlib.Path(self.cert)
        good = path.read_bytes()
        path.write_text("junk")
        try:
            yield
        finally:
            path.write_bytes(good)

    async def open(self, start):
        """Starts the servers with a function that takes settings and returns a server."""
        tls = {"tls_cert": self.cert, "tls_key": self.key}
        self.plain = (await start()).listen.port
        self.tls = (await start(**tls, tokens=str(self.folder / "tokens"))).listen.port
        self.mutual = (await start(**tls, tls_client_ca=self.ca)).listen.port


@pytest.fixture(scope="module")
def envoy_doors(server_loop, tmp_path_factory):
    """Servers on the envoy front, for all tests of this file: their processes take seconds to start."""
    made, servers = Doors(tmp_path_factory.mktemp("doors")), []

    async def start(**changes):
        servers.append(EnvoyServer())
        await servers[-1].start(settings(front="envoy", **changes))
        return servers[-1]

    server_loop.run(made.open(start))
    yield made
    for server in servers:
        server_loop.run(server.stop())


@pytest.fixture
async def doors(front, start, request, tmp_path):
    """Servers that run."""
    if front == "envoy":
        return request.getfixturevalue("envoy_doors")
    made = Doors(tmp_path)

    async def start_server(**changes):
        return (await start(**changes)).server

    await made.open(start_server)
    return made


async def outcome(target, tls=None, token=None):
    """Returns the error that a client meets; None if it is let in."""
    async with Client(target, tls=tls, token=token, retry=ONCE) as client:
        try:
            await asyncio.wait_for(client.models(), BOUND_SECONDS)
        except (ConnectionLost, Unauthenticated) as error:
            return error
    return None


async def test_the_library_says_what_is_wrong_with_tls(doors):
    """Each kind of mistake, and the flag that mends it."""
    trusting = Tls(root_certificates=doors.authority.pem)

    def showing(issued):
        return Tls(
            root_certificates=doors.authority.pem,
            certificate_chain=issued.certificate,
            private_key=issued.key,
        )

    def at(port):
        return f"localhost:{port}"

    assert await outcome(at(doors.plain)) is None
    assert await outcome(at(doors.tls), trusting, doors.token) is None
    assert await outcome(at(doors.mutual), showing(doors.alice)) is None
    ended = doors.authority.issue(common_name("alice"), days=-1)
    for target, tls, words in (
        (at(doors.tls), None, "may take TLS (tls=Tls(), --tls)"),
        (at(doors.plain), trusting, "does not speak TLS"),
        (at(doors.tls), Tls(root_certificates=doors.other.pem), "--tls-ca"),
        (at(doors.tls), Tls(), "--tls-ca"),
        (f"127.0.0.1:{doors.tls}", trusting, "--tls-server-name"),
        (at(doors.mutual), trusting, "may ask for a client certificate"),
        (at(doors.mutual), showing(doors.other.client("alice")), "may not take this client's certificate"),
        (at(doors.mutual), showing(ended), "may not take this client's certificate"),
    ):
        error = await outcome(target, tls)
        assert isinstance(error, ConnectionLost), (target, words)
        assert words in error.message, (words, error.message)
    refused = await outcome(at(doors.tls), trusting)
    assert isinstance(refused, Unauthenticated)


async def test_commands_come_in(doors, monkeypatch):
    """The load test, the raw load of the benchmark, the command and the health check, by the same options."""
    monkeypatch.chdir(doors.folder)
    trust, show = ["--tls-ca", "ca.pem"], ["--tls-cert", "alice.pem", "--tls-key", "alice.key"]
    load = ["--warm-up", "0", "--streams", "2", "--model", "mackey-glass", "--json", "-"]
    for port, options in ((doors.tls, [*trust, "--token-file", "token"]), (doors.mutual, [*trust, *show])):
        target = ["--target", f"localhost:{port}", *options]
        for mode in ("stream", "unary"):
            assert await has_steps("loadtest", *target, *load, "--mode", mode)
        # The benchmark's steps are for another model; that the server says so is an answer.
        _, out = await in_process("bench.raw", *target, *load, "--seconds", "0.2")
        assert "x: 8 values; mackey-glass/1 takes 1 a step" in out
        status, out = await in_process("streamcell", "models", *target)
        assert status == 0
        assert "mackey-glass/1" in out
    options = options_of.parse(["--target", f"localhost:{doors.tls}", *load, "--seconds", "0.2"])
    with pytest.raises(LoadtestError, match="--tls"):
        await generate(options, None, asyncio.Event())


async def has_steps(*command):
    """Returns whether a load test succeeds; on a busy machine its time may pass before the first step."""
    for seconds in ("0.2", "2", "20"):
        status, out = await in_process(*command, "--seconds", seconds)
        if json.loads(out)["steps"]:
            break
    return status == 0


async def in_process(module, *arguments):
    """Runs a module as a command, and returns its status and its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )
    out, _ = await asyncio.wait_for(process.communicate(), BOUND_SECONDS)
    return process.returncode, out.decode()


async def test_the_health_check_comes_in_by_itself(doors, capsys):
    """By the server's own variables, whatever the certificate's name; without a token."""

    async def check(port, *options, **environment):
        return await asyncio.to_thread(healthcheck, f"127.0.0.1:{port}", *options, **environment)

    own = {"STREAMCELL_TLS_CERT": doors.cert, "STREAMCELL_TLS_KEY": doors.key}
    mutual = {**own, "STREAMCELL_TLS_CLIENT_CA": doors.ca}
    alice = {name: str(doors.folder / f"alice.{end}") for name, end in (("CERT", "pem"), ("KEY", "key"))}
    shown = {f"HEALTHCHECK_TLS_{name}": path for name, path in alice.items()}
    assert await check(doors.plain) == 0
    assert await check(doors.tls, **own) == 0
    assert await check(doors.mutual, **mutual, **shown) == 0
    assert await check(doors.tls, "--tls-ca", doors.ca, "--tls-server-name", "localhost") == 0
    # A file that the server has not taken does not make it sick.
    with doors.broken_certificate():
        assert await check(doors.tls, **own) == 0
    assert capsys.readouterr().err == ""
    for port, environment, words in (
        (doors.tls, {}, "may take TLS"),
        (doors.plain, own, "does not speak TLS"),
        (doors.mutual, mutual, "HEALTHCHECK_TLS_CERT"),
        (doors.mutual, own, "may ask for a client certificate"),
    ):
        assert await check(port, **environment) == 1
        assert words in capsys.readouterr().err
