"""The raw generator by the Open Inference Protocol: against a real server, and where something goes wrong."""

import asyncio

import pytest
from streamcell.inference import open_inference_pb2 as pb

from bench import http2, infer
from bench.wire import Streams
from loadtest.errors import LoadtestError, OptionError
from loadtest.options import Options
from tests.unit.bench import fake_connection
from tests.unit.loadtest.test_loadtest_run import open_sessions, real_server


def options(target="127.0.0.1:1", **changes):
    """Returns a short load."""
    given = {"mode": "stream", "streams": 3, "seconds": 0.4, "warm_up": 0.05, "model": "mackey-glass"}
    return Options(target=str(target), **given | changes)


@pytest.mark.parametrize("rate", [0.0, 300.0])
async def test_load_counts_what_is_answered(rate):
    """Every step a sequence's, and none is left."""
    async with real_server() as server:
        found = await asyncio.to_thread(infer.run, options(server.listen, rate=rate))
        assert found.tally.num_errors == 0
        assert found.tally.num_steps > 0
        assert open_sessions(server) == 0


@pytest.mark.parametrize("model", ["", "none"])
async def test_model_that_is_not_told_is_asked_for(model):
    """The server has two."""
    async with real_server() as server:
        with pytest.raises(LoadtestError, match=r"--model: name one of mackey-glass/1, nyc-taxi/1"):
            await asyncio.to_thread(infer.run, options(server.listen, model=model))


def test_nobody_answers():
    """The address is named."""
    with pytest.raises(LoadtestError, match=r"127\.0\.0\.1:1"):
        infer.run(options())


def test_other_modes_are_for_others():
    """It streams single steps."""
    with pytest.raises(OptionError, match="--mode: unary"):
        infer.run(options(mode="unary"))


def test_step_that_failed_ends_the_load():
    """As its answer says, or the stream's end."""
    connection = fake_connection.connection()
    streams = Streams([connection], infer.stream_method(2))
    (name,) = infer.session_ids("m/1", 1)
    streams.open(7, name)
    good = pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse(id="1")).SerializeToString()
    assert streams.answered(connection, (http2.DATA, 0, 1, http2.message(good))) == 7
    assert streams.answered(connection, (http2.HEADERS, 0, 1, b"")) is None
    bad = pb.ModelStreamInferResponse(error_message="no room").SerializeToString()
    with pytest.raises(LoadtestError, match="no room"):
        streams.answered(connection, (http2.DATA, 0, 1, http2.message(bad)))
    with pytest.raises(LoadtestError, match="ended a stream"):
        streams.answered(connection, (http2.HEADERS, http2.END_STREAM, 1, b""))


def test_sequences_are_all_others():
    """Each of the streams has its own."""
    assert len(set(infer.session_ids("m/1", 50))) == 50
