"""The raw load on a real server, in closed and open loops; its senders and its connection by themselves."""

import asyncio
import json
import os
import sys

import pytest
from streamcell.v1 import streamcell_pb2 as pb

from bench import http2, raw, replies
from bench.processes import running
from bench.wire import STEPS, Callers, Streams
from loadtest.errors import LoadtestError, OptionError
from loadtest.options import Options
from tests.unit.bench import fake_connection
from tests.unit.loadtest.test_loadtest_run import open_sessions, real_server

BOUND_SECONDS = 60.0


def options(target="127.0.0.1:1", **changes):
    """Returns a load that ends by count, long before its time."""
    given = {"mode": "stream", "streams": 3, "seconds": BOUND_SECONDS, "warm_up": 0.0, "max_steps": 40}
    return Options(target=target, **given | changes)


@pytest.fixture
async def echo():
    """The address of an echo, which accepts steps of any model."""
    block = running("bench.echo", cores=())
    yield (await asyncio.to_thread(block.__enter__)).listen
    await asyncio.to_thread(block.__exit__, None, None, None)


class TestLoad:
    """A whole run, on an echo."""

    @pytest.mark.parametrize("mode", ["stream", "unary"])
    @pytest.mark.parametrize("rate", [0.0, 500.0])
    async def test_counts_what_is_answered(self, echo, mode, rate):
        """Counts steps, latencies and the server's cost; an open loop sends by its schedule and no more."""
        given = options(echo, mode=mode, rate=rate, server_pid=os.getpid())
        found = await asyncio.to_thread(raw.run, given)
        tally = found.tally
        assert tally.num_errors == 0
        assert tally.num_messages == tally.num_steps == len(tally.latencies) == 40
        assert 0 < tally.seconds < BOUND_SECONDS
        assert tally.busiest_core > 0
        assert found.server is not None
        if rate:
            assert tally.num_sent_steps <= 2 * rate * tally.seconds

    async def test_ends_with_its_window(self, echo):
        """Without a bound on steps; what is outstanding at the end is waited for."""
        found = await asyncio.to_thread(raw.run, options(echo, seconds=0.05, warm_up=0.05, max_steps=0))
        assert found.tally.num_errors == 0
        assert found.tally.seconds == pytest.approx(0.05)

    async def test_command_prints_what_loadtest_prints(self, echo, monkeypatch, capsys):
        """JSON alone on standard output; an error is a line on standard error."""
        arguments = ["--target", echo, "--streams", "2", "--max-steps", "10", "--warm-up", "0", "--json", "-"]
        monkeypatch.setattr(sys, "argv", ["raw", *arguments])
        assert await asyncio.to_thread(raw.main) == 0
        assert json.loads(capsys.readouterr().out)["steps"] == 10
        monkeypatch.setattr(sys, "argv", ["raw", "--target", "127.0.0.1:1"])
        assert raw.main() == 2
        assert capsys.readouterr().err.startswith("bench.raw: 127.0.0.1:1")


class TestRefusal:
    """A load that cannot begin."""

    async def test_server_that_refuses_sessions_is_quoted(self):
        """No session stays open."""
        async with real_server() as server:
            block = raw.sessions(Options(target=str(server.listen)), ["a", "b", "c"])
            with pytest.raises(LoadtestError, match="model"):  # the server has two, and none is named
                await asyncio.to_thread(block.__enter__)
            assert open_sessions(server) == 0

    def test_address_where_nobody_listens_is_named(self):
        """Port 1 of the loopback has no server."""
        with pytest.raises(LoadtestError, match=r"127\.0\.0\.1:1"):
            raw.run(options())

    def test_modes_of_many_steps_are_for_loadtest(self):
        """The option is named."""
        with pytest.raises(OptionError, match="--mode: frame is for loadtest"):
            raw.run(Options(target="127.0.0.1:1", mode="frame"))


class TestSenders:
    """Which frames answer a stream or a caller, and which are errors."""

    def test_step_that_failed_on_a_stream_ends_the_load(self):
        """With the server's message, or with the end of the stream."""
        connection = fake_connection.connection()
        streams = Streams([connection], STEPS)
        streams.open(7, "a")
        good = http2.message(replies.STREAM_STEP)
        assert streams.answered(connection, (http2.DATA, 0, 1, good)) == 7
        assert streams.answered(connection, (http2.HEADERS, 0, 1, b"")) is None
        error = pb.StreamResponse(error=pb.StreamError(message="no room")).SerializeToString()
        with pytest.raises(LoadtestError, match="no room"):
            streams.answered(connection, (http2.DATA, 0, 1, http2.message(error)))
        with pytest.raises(LoadtestError, match="ended a stream"):
            streams.answered(connection, (http2.HEADERS, http2.END_STREAM, 1, b""))

    def test_call_is_answered_with_its_trailers(self):
        """Trailers without a message before them are an error."""
        connection = fake_connection.connection()
        callers = Callers([connection])
        callers.open(4, "a")
        assert callers.answered(connection, (http2.DATA, 0, 1, http2.message(b""))) is None
        assert callers.answered(connection, (http2.HEADERS, http2.END_STREAM, 1, b"")) == 4
        callers.send(4)
        with pytest.raises(LoadtestError, match="a call failed"):
            callers.answered(connection, (http2.HEADERS, http2.END_STREAM, 3, b""))


class TestConnection:
    """What a connection does by itself."""

    def test_acknowledges_settings_and_pings(self):
        """No sender sees these frames."""
        connection = fake_connection.connection()
        connection.flush()
        connection.socket.sent.clear()
        ping = http2.frame(http2.PING, 0, 0, b"12345678")
        received = http2.frame(http2.SETTINGS, 0, 0, b"") + ping
        assert fake_connection.receive(connection, received) == []
        connection.flush()
        assert http2.Reader().feed(bytes(connection.socket.sent)) == [
            (http2.SETTINGS, http2.ACK, 0, b""), (http2.PING, http2.ACK, 0, b"12345678")
        ]  # fmt: skip

    def test_reports_what_ends_a_call(self):
        """A reset of one of its calls, a GOAWAY, the end of the bytes; another stream's reset is ignored."""
        connection = fake_connection.connection()
        connection.begin("/s/m", 0)
        reset = http2.frame(http2.RST_STREAM, 0, 99, b"\0" * 4)
        assert fake_connection.receive(connection, reset) == []
        for kind, stream in ((http2.RST_STREAM, 1), (http2.GOAWAY, 0)):
            with pytest.raises(LoadtestError, match="broke a call off"):
                fake_connection.receive(connection, http2.frame(kind, 0, stream, b"\0" * 8))
        with pytest.raises(LoadtestError, match="closed a connection"):
            fake_connection.receive(connection, b"")
