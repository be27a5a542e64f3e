"""The raw generator: against a real server, in closed and open loops, and where something goes wrong."""

import asyncio
import json
import os
import sys

import pytest

from bench import http2, raw, replies
from bench.wire import STEPS, Callers, Streams
from loadtest.errors import LoadtestError, OptionError
from loadtest.options import Options
from tests.unit.bench import fake_connection
from tests.unit.loadtest.test_loadtest_run import open_sessions, real_server


def options(target="127.0.0.1:1", **changes):
    """Returns a short load."""
    given = {"mode": "stream", "streams": 3, "seconds": 0.05, "warm_up": 0.05, "server_pid": os.getpid()}
    return Options(target=target, **given | changes)


@pytest.fixture
async def echo():
    """The address of an echo, which takes steps of any model."""
    from bench.processes import running

    block = running("bench.echo", cores=())
    yield (await asyncio.to_thread(block.__enter__)).listen
    await asyncio.to_thread(block.__exit__, None, None, None)


@pytest.mark.parametrize("mode", ["stream", "unary"])
@pytest.mark.parametrize("rate", [0.0, 500.0])
async def test_load_counts_what_is_answered(echo, mode, rate):
    """Steps, latencies, what it cost; an open loop sends by its plan and no more."""
    found = await asyncio.to_thread(raw.run, options(echo, mode=mode, rate=rate, seconds=0.2))
    tally = found.tally
    assert tally.num_errors == 0
    assert tally.num_messages == tally.num_steps > 0
    assert len(tally.latencies) > 0
    assert tally.busiest_core > 0
    assert found.server is not None
    if rate:
        assert tally.num_sent_steps <= 2 * rate * tally.seconds


async def test_server_that_refuses_sessions_is_quoted():
    """None is left behind."""
    async with real_server() as server:
        target = str(server.listen)
        block = raw.sessions(target, ["a", "b", "c"])
        with pytest.raises(LoadtestError, match="model"):  # there are two: none is named
            await asyncio.to_thread(block.__enter__)
        assert open_sessions(server) == 0


def test_nobody_answers():
    """One line, and loadtest's exit status."""
    with pytest.raises(LoadtestError, match=r"127\.0\.0\.1:1"):
        raw.run(options())


def test_modes_of_many_steps_are_for_loadtest():
    """Whose messages differ from one to the next."""
    with pytest.raises(OptionError, match="--mode: frame is for loadtest"):
        raw.run(options(mode="frame"))


async def test_command_prints_what_loadtest_prints(echo, monkeypatch, capsys):
    """JSON alone, for the benchmark; what goes wrong is a line elsewhere."""
    arguments = ["--target", echo, "--streams", "2", "--seconds", "0.05", "--warm-up", "0", "--json", "-"]
    monkeypatch.setattr(sys, "argv", ["generator", *arguments])
    assert await asyncio.to_thread(raw.main) == 0
    assert json.loads(capsys.readouterr().out)["steps"] > 0
    monkeypatch.setattr(sys, "argv", ["generator", "--target", "127.0.0.1:1"])
    assert raw.main() == 2
    assert capsys.readouterr().err.startswith("bench.raw: 127.0.0.1:1")


def test_step_that_failed_on_a_stream_ends_the_load():
    """As its answer says, or the stream's end."""
    from streamcell.v1 import streamcell_pb2 as pb

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


def test_call_is_answered_with_its_trailers():
    """Which alone are an error."""
    connection = fake_connection.connection()
    callers = Callers([connection])
    callers.open(4, "a")
    assert callers.answered(connection, (http2.DATA, 0, 1, http2.message(b""))) is None
    assert callers.answered(connection, (http2.HEADERS, http2.END_STREAM, 1, b"")) == 4
    callers.send(4)
    with pytest.raises(LoadtestError, match="a call failed"):
        callers.answered(connection, (http2.HEADERS, http2.END_STREAM, 3, b""))


def test_connection_answers_for_itself():
    """Settings and pings; it takes note of what breaks a call off."""
    connection = fake_connection.connection()
    connection.begin("/s/m", 0)
    connection._out.clear()
    ping = http2.frame(http2.PING, 0, 0, b"12345678")
    assert fake_connection.receive(connection, http2.frame(http2.SETTINGS, 0, 0, b"") + ping) == []
    acknowledged = http2.Reader().feed(bytes(connection._out))
    assert acknowledged == [
        (http2.SETTINGS, http2.ACK, 0, b""), (http2.PING, http2.ACK, 0, b"12345678")
    ]  # fmt: skip
    assert fake_connection.receive(connection, http2.frame(http2.RST_STREAM, 0, 99, b"\0" * 4)) == []
    for broken in ((http2.RST_STREAM, 1), (http2.GOAWAY, 0)):
        with pytest.raises(LoadtestError, match="broke a call off"):
            fake_connection.receive(connection, http2.frame(broken[0], 0, broken[1], b"\0" * 8))
    with pytest.raises(LoadtestError, match="closed a connection"):
        fake_connection.receive(connection, b"")
