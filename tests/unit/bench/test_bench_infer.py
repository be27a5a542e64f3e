"""The raw load by the Open Inference Protocol: against a real server, and its answers by themselves."""

import asyncio

import pytest
from streamcell.inference import open_inference_pb2 as pb

from bench import http2, infer
from bench.wire import Streams
from loadtest.errors import LoadtestError, OptionError
from loadtest.options import Options
from tests.unit.bench import fake_connection
from tests.unit.loadtest.test_loadtest_run import open_sessions, real_server

BOUND_SECONDS = 60.0


def options(target="127.0.0.1:1", **changes):
    """Returns a load that ends by count, long before its time."""
    given = {"seconds": BOUND_SECONDS, "warm_up": 0.0, "max_steps": 40, "model": "mackey-glass"}
    return Options(target=str(target), mode="stream", **{"streams": 3, **given, **changes})


class TestLoad:
    """A whole run."""

    @pytest.mark.parametrize("rate", [0.0, 300.0])
    async def test_counts_what_is_answered(self, rate):
        """Each step is one of a sequence, and no session stays open."""
        async with real_server() as server:
            found = await asyncio.to_thread(infer.run, options(server.listen, rate=rate))
            assert found.tally.num_errors == 0
            assert found.tally.num_steps == 40
            assert open_sessions(server) == 0

    @pytest.mark.parametrize("model", ["", "none"])
    async def test_model_that_the_server_cannot_choose_is_asked_for(self, model):
        """The server has two, and another name is neither."""
        async with real_server() as server:
            with pytest.raises(LoadtestError, match=r"--model: name one of mackey-glass/1, nyc-taxi/1"):
                await asyncio.to_thread(infer.run, options(server.listen, model=model))

    def test_address_where_nobody_listens_is_named(self):
        """Port 1 of the loopback has no server."""
        with pytest.raises(LoadtestError, match=r"127\.0\.0\.1:1"):
            infer.run(options())

    def test_other_modes_are_refused(self):
        """The option is named."""
        with pytest.raises(OptionError, match="--mode: unary"):
            infer.run(Options(target="127.0.0.1:1", mode="unary"))


class TestSequences:
    """What is sent and answered on a stream of a sequence."""

    def test_step_that_failed_ends_the_load(self):
        """With the server's message, or with the end of the stream."""
        connection = fake_connection.connection()
        streams = Streams([connection], infer.stream_method(2))
        (session_id,) = infer.session_ids("m/1", 1)
        streams.open(7, session_id)
        response = pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse(id="1"))
        good = http2.message(response.SerializeToString())
        assert streams.answered(connection, (http2.DATA, 0, 1, good)) == 7
        assert streams.answered(connection, (http2.HEADERS, 0, 1, b"")) is None
        bad = pb.ModelStreamInferResponse(error_message="no room").SerializeToString()
        with pytest.raises(LoadtestError, match="no room"):
            streams.answered(connection, (http2.DATA, 0, 1, http2.message(bad)))
        with pytest.raises(LoadtestError, match="ended a stream"):
            streams.answered(connection, (http2.HEADERS, http2.END_STREAM, 1, b""))

    def test_each_stream_has_a_sequence_of_its_own(self):
        """No two ids are equal."""
        assert len(set(infer.session_ids("m/1", 50))) == 50
