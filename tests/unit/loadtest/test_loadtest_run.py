"""Short runs against a real server in this process: they end by count, and leave no session behind."""

import asyncio
import contextlib
import json
import pathlib
import time

import pytest

from loadtest.api import Connection
from loadtest.driver import generate
from loadtest.errors import LoadtestError, OptionError
from loadtest.options import Options
from loadtest.payloads import Payloads
from loadtest.pipelined import PipelinedSender
from loadtest.run import run
from loadtest.senders import CallSender, SenderBrokenError, StreamSender
from service.config import Address, Config
from service.server import Server

ROOT = pathlib.Path(__file__).parents[3]
LOOPBACK = Address("127.0.0.1", 0)
BOUND_SECONDS = 60.0


@contextlib.asynccontextmanager
async def real_server(**changes):
    """Serves the shipped models on free ports for as long as the block lasts, then drains."""
    models = ROOT / "model" / "artifacts"
    server = Server(Config(listen=LOOPBACK, metrics_listen=LOOPBACK, models=models, **changes))
    await server.start()
    try:
        yield server
    finally:
        await server.drain()


async def load(server, stop=None, **changes):
    """Runs a load that ends by count, long before its time."""
    counted = {
        "streams": 4,
        "seconds": BOUND_SECONDS,
        "warm_up": 0.0,
        "model": "mackey-glass",
        "max_steps": 40,
    }
    options = Options(target=str(server.listen), **{**counted, **changes})
    return await asyncio.wait_for(run(options, stop or asyncio.Event()), BOUND_SECONDS)


def open_sessions(server):
    """Returns the number of open sessions of a server."""
    return sum(len(engine.sessions) for engine in server.catalog.versions.engines)


@contextlib.asynccontextmanager
async def connected(server):
    """Connects, opens a session and prepares its messages."""
    connection = Connection(str(server.listen))
    await connection.open_session("mine", "mackey-glass")
    try:
        yield connection, Payloads(1, 1)
    finally:
        await connection.close()


class TestRun:
    """A whole load test, in one process or in two."""

    @pytest.mark.parametrize(
        ("changes", "steps"),
        [
            ({"mode": "stream"}, 40),
            ({"mode": "unary"}, 40),
            ({"mode": "frame", "frame_steps": 5, "streams": 2}, 40),
            ({"mode": "prime", "frame_steps": 20, "streams": 2}, 40),
            ({"mode": "stream", "rate": 4000.0}, 40),
            ({"mode": "stream", "rate": 4000.0, "in_flight": 5}, 40),
            ({"mode": "frame", "frame_steps": 5, "streams": 2, "in_flight": 3}, 40),
            ({"mode": "unary", "in_flight": 3}, 40),
            ({"mode": "forecast", "horizon": 3}, 40),
            ({"mode": "forecast", "model": "nyc-taxi"}, 40),
            ({"mode": "stream", "model": "nyc-taxi/1"}, 40),
            ({"mode": "unary", "processes": 2}, 40),
        ],
    )
    async def test_every_mode_sends_as_many_steps_as_it_may(self, changes, steps):
        """All are answered without an error, each message is timed, and no session stays open."""
        async with real_server() as server:
            result = await load(server, **changes)
            assert result.tally.num_steps == steps
            assert result.tally.num_errors == 0
            assert len(result.tally.latencies) == result.tally.num_messages
            assert 0 < result.tally.seconds < BOUND_SECONDS
            assert open_sessions(server) == 0

    async def test_stopped_load_closes_its_sessions(self):
        """As after an interrupt at the terminal, at the moment when all of them are open."""
        async with real_server() as server:
            stop, seen = asyncio.Event(), []

            async def begin():
                seen.append(open_sessions(server))
                stop.set()
                return time.monotonic_ns()

            options = Options(
                target=str(server.listen), model="mackey-glass", streams=5, seconds=BOUND_SECONDS
            )
            tally = await asyncio.wait_for(generate(options, begin, stop), BOUND_SECONDS)
            assert seen == [5]
            assert tally.num_errors == 0
            assert open_sessions(server) == 0

    async def test_stop_before_the_load_measures_nothing(self):
        """No session stays open."""
        async with real_server() as server:
            stop = asyncio.Event()
            stop.set()
            with pytest.raises(LoadtestError, match="interrupted before the load began"):
                await load(server, stop)
            assert open_sessions(server) == 0

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model": "nope"}, "--model: the server has no 'nope'; it has mackey-glass, nyc-taxi"),
            ({"model": ""}, "--model: the server has several: mackey-glass, nyc-taxi"),
            (
                {"mode": "prime", "frame_steps": 100, "max_steps": 0},
                "--frame-steps: the server takes 64 steps",
            ),
        ],
    )
    async def test_what_this_server_cannot_take_is_refused_before_the_load(self, changes, message):
        """The error names the option."""
        async with real_server(max_message_steps=64) as server:
            with pytest.raises(OptionError, match=message):
                await load(server, **changes)
            assert open_sessions(server) == 0


class TestServerCost:
    """The server is read through its metrics."""

    async def test_server_is_read_through_its_metrics(self):
        """The steps that it counted between the two readings are those that were sent."""
        async with real_server() as server:
            result = await load(server, metrics=str(server.metrics_listen))
            assert result.server is not None
            assert result.server.p50_seconds is not None
            steps = result.server.cpu_seconds / result.server.cpu_us_per_step * 1e6
            assert steps == pytest.approx(40)

    async def test_cost_of_a_forecast_is_per_forecast(self):
        """The server counts and times only steps, so its own counts are not used."""
        async with real_server() as server:
            result = await load(server, mode="forecast", metrics=str(server.metrics_listen))
            assert result.server is not None
            assert (result.server.num_steps, result.server.p50_seconds) == (40, None)

    async def test_missing_metrics_are_an_error_before_the_load(self):
        """Port 1 of the loopback has no metrics."""
        async with real_server() as server:
            with pytest.raises(LoadtestError, match="--metrics: cannot read"):
                await load(server, metrics="127.0.0.1:1")


class TestSenders:
    """What an answer means to a sender."""

    async def test_error_of_a_call_is_the_servers_reason(self):
        """A session that is not there is a reason, and the caller can go on."""
        async with real_server() as server, connected(server) as (connection, payloads):
            assert await CallSender(connection.step, payloads.steps("mine")).send() == ""
            assert await CallSender(connection.step, payloads.steps("other")).send() == "SESSION_NOT_FOUND"

    async def test_error_on_a_stream_is_the_servers_reason(self):
        """Its session was closed: a step and a frame's entry have that reason, and the stream goes on."""
        async with real_server() as server, connected(server) as (connection, payloads):
            messages = [payloads.stream_steps[0], payloads.stream_steps[0], payloads.stream_frames[0]]
            sender = StreamSender(connection.stream, messages, ["mine"])
            await sender.open()
            assert await sender.send() == ""
            await connection.close_session("mine")
            assert [await sender.send(), await sender.send()] == ["SESSION_NOT_FOUND"] * 2
            await sender.close()

    async def test_answers_find_their_messages_whatever_their_order(self):
        """Many are outstanding on one stream, and each message gets its own error."""
        async with real_server() as server, connected(server) as (connection, payloads):
            sender = PipelinedSender(connection.stream, payloads.stream_steps, ["mine"])
            await sender.open()
            assert await asyncio.gather(*(sender.send() for _ in range(20))) == [""] * 20
            await connection.close_session("mine")
            found = await asyncio.gather(*(sender.send() for _ in range(20)))
            assert found == ["SESSION_NOT_FOUND"] * 20
            await sender.close()

    async def test_stream_with_a_missing_session_does_not_open(self):
        """The error quotes the server."""
        async with real_server() as server, connected(server) as (connection, payloads):
            sender = StreamSender(connection.stream, payloads.stream_steps, ["other"])
            with pytest.raises(LoadtestError, match="cannot bind sessions to a stream: "):
                await sender.open()
            await sender.close()

    async def test_senders_are_broken_when_the_server_is_gone(self):
        """So that none of them calls a dead server in a tight loop."""
        async with real_server() as server, connected(server) as (connection, payloads):
            stream = StreamSender(connection.stream, payloads.stream_steps, ["mine"])
            pipelined = PipelinedSender(connection.stream, payloads.stream_steps, ["mine"])
            await stream.open()
            await pipelined.open()
            await server.abandon()
            for each in (stream, pipelined, CallSender(connection.step, payloads.steps("mine"))):
                with pytest.raises(SenderBrokenError):
                    await asyncio.wait_for(each.send(), BOUND_SECONDS)


class TestResultFile:
    """The file of --json."""

    def test_json_file_that_cannot_be_written_is_named(self, tmp_path):
        """Its folder is not there."""
        from loadtest.__main__ import _show
        from tests.unit.loadtest.test_loadtest_report import result

        with pytest.raises(LoadtestError, match="--json: cannot write"):
            _show(result(json=str(tmp_path / "none" / "out.json")))
        _show(result(json=str(tmp_path / "out.json")))
        assert json.loads((tmp_path / "out.json").read_text())["steps"] == 1000
