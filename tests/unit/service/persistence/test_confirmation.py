"""Sessions that were idle: their owner is confirmed before they are used, so that no old copy answers."""

import numpy as np
import pytest
from streamcell.inference import open_inference_pb2 as inference
from streamcell.v1 import streamcell_pb2 as pb

from service.store.base import WriteKind
from tests import fakes
from tests.fakes import Alone, answer, bits, talk
from tests.unit.service.persistence.sessions import X, resume, step, until, until_stored

IDLE_NS = 10**9


def make_idle(served):
    """Makes all sessions of a server seem idle for long, and not confirmed since."""
    for engine in served.engines:
        for slot in engine.sessions.slots():
            engine.sessions.last_used[slot] -= IDLE_NS
            engine.sessions.ownership._confirmed[slot] -= IDLE_NS


async def two_servers(serve, num_steps=1):
    """Returns a server with an older copy of session s, and the owner, which is two steps further."""
    old, owner = await serve(checkpoint_interval_seconds=3600), await serve()
    old.write_behind.confirm_after_ns = old.catalog.persistence._confirm_after_ns = IDLE_NS // 2
    await old.open("s")
    for row in range(num_steps):
        await old.ask("Step", step(row=row))
    await old.catalog.persistence.wait_until_stored(old.catalog.find("", "s"))
    return old, owner


async def move(old, owner):
    """Lets the owner take the session over and go on, while the session is idle on the old server."""
    await resume(owner)
    for row in (1, 2):
        await owner.ask("Step", step(row=row))
    await until_stored(owner, num_steps=3)
    make_idle(old)


ASKED = {
    "a step": ("Step", step(row=5)),
    "an indexed step": ("Step", step(row=5, step_index=1)),
    "a step far ahead": ("Step", step(row=5, step_index=15)),
    "the session": ("GetSession", pb.GetSessionRequest(session_id="s")),
    "a forecast": ("Forecast", pb.ForecastRequest(session_id="s", horizon_steps=2)),
    "priming": ("Prime", pb.PrimeRequest(session_id="s", x=X[:2].reshape(-1))),
    "a reset": ("ResetSession", pb.ResetSessionRequest(session_id="s")),
    "a copy": ("ForkSession", pb.ForkSessionRequest(session_id="s", new_session_id="t")),
    "a snapshot": ("SnapshotSession", pb.SnapshotSessionRequest(session_id="s")),
}


class TestAnotherServerHasIt:
    """The server with the old copy says SESSION_FENCED, and nothing of the old state."""

    @pytest.mark.parametrize("asked", ASKED)
    async def test_calls(self, serve, asked):
        """Whatever a call asks for."""
        old, owner = await two_servers(serve)
        await move(old, owner)
        assert (await old.refused(*ASKED[asked])).reason == "SESSION_FENCED"
        assert len(old.engines[0].sessions) == 0

    @pytest.mark.parametrize("by", ["id", "number"])
    async def test_steps_of_a_stream(self, serve, by):
        """By id and by number."""
        old, owner = await two_servers(serve)
        stream = old.stream()
        await talk(stream, pb.StreamRequest(config=pb.StreamConfig(session_ids=["s"])))
        await move(old, owner)
        asked = step(row=5) if by == "id" else pb.StepRequest(session=0, x=X[5])
        (found,) = await talk(stream, pb.StreamRequest(step=asked))
        assert found.error.reason == "SESSION_FENCED"

    @pytest.mark.parametrize("by", ["id", "number", "binding"])
    async def test_frames(self, serve, by):
        """The frame's other session runs."""
        old, owner = await two_servers(serve)
        await old.open("t")
        stream = old.stream()
        await talk(stream, pb.StreamRequest(config=pb.StreamConfig(session_ids=["s", "t"])))
        await move(old, owner)
        frame = pb.Frame(x_raw=X[:2].tobytes())
        if by == "id":
            frame.session_ids.extend(["s", "t"])
        elif by == "number":
            frame.session_raw = np.arange(2, dtype="<u4").tobytes()
        (found,) = await talk(stream, pb.StreamRequest(frame=frame))
        assert {error.entry: error.error.reason for error in found.frame.errors} == {0: "SESSION_FENCED"}
        assert np.frombuffer(found.frame.y_raw, "<f4")[2:].tobytes() == Alone(fakes.recurrence()).step(X[1])

    async def test_a_client_that_opens_the_session_gets_the_newest_state(self, serve):
        """OpenSession takes the session back."""
        old, owner = await two_servers(serve)
        await move(old, owner)
        assert (await resume(old)).next_step_index == 3


class TestStillTheOwner:
    """A session that nobody took goes on, after one look at the store."""

    async def test_the_session_goes_on(self, serve):
        """With the same bits, and without a write of its state."""
        served, _ = await two_servers(serve)
        alone = Alone(fakes.recurrence())
        alone.step(X[0])
        make_idle(served)
        seen = []
        write = served.store.write

        async def record(writes):
            seen.extend(writes)
            return await write(writes)

        served.store.write = record
        reply = await served.ask("Step", step(row=1))
        assert (reply.step_index, bits(reply.y)) == (1, alone.step(X[1]))
        assert [(each.kind, each.key, each.record) for each in seen] == [(WriteKind.VERIFY, "\0s", None)]
        await served.ask("Step", step(row=2))
        assert len(seen) == 1  # a session in use is not asked for

    async def test_many_sessions_take_one_call(self, serve):
        """All sessions of a frame that were idle are confirmed together."""
        served, _ = await two_servers(serve)
        names = [f"n{number}" for number in range(20)]
        await served.open(*names)
        make_idle(served)
        count = served.store.num_writes
        frame = pb.Frame(session_ids=names, x_raw=X[:20].tobytes())
        (found,) = await talk(served.stream(), pb.StreamRequest(frame=frame))
        assert not found.frame.errors
        assert served.store.num_writes == count + 1

    async def test_without_its_store_a_server_serves_on(self, serve):
        """Nothing can be confirmed; steps are answered from memory, as always while the store is away."""
        served, _ = await two_servers(serve)
        make_idle(served)
        served.store.trouble = "unplugged"
        assert (await served.ask("Step", step(row=1))).step_index == 1
        await until(lambda: served.write_behind.trouble)
        make_idle(served)
        assert (await served.ask("Step", step(row=2))).step_index == 2
        served.store.trouble = ""

    async def test_a_row_that_is_gone_is_written_anew(self, serve):
        """The session is confirmed by its new row."""
        served, _ = await two_servers(serve)
        served.store.rows.clear()
        make_idle(served)
        assert (await served.ask("Step", step(row=1))).step_index == 1
        assert served.store.rows["\0s"].epoch == 2


async def test_a_sequence_of_the_inference_protocol(serve):
    """An idle sequence that another server took over is refused, too, unless the request starts it anew."""
    method = "/inference.GRPCInferenceService/ModelStreamInfer"
    old, owner = await serve(checkpoint_interval_seconds=3600), await serve()
    old.catalog.persistence._confirm_after_ns = IDLE_NS // 2

    def infer(row, **flags):
        request = inference.ModelInferRequest(model_name="recurrence")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        request.raw_input_contents.append(X[row].tobytes())
        request.parameters["sequence_id"].int64_param = 7
        for name in flags:
            request.parameters[name].bool_param = True
        return request

    async def ask(served, request):
        stream = served.stream(method)
        stream.receive(request.SerializeToString())
        return inference.ModelStreamInferResponse.FromString(await fakes.next_message(stream))

    assert not (await ask(old, infer(0, sequence_start=True))).error_message
    key = next(old.engines[0].sessions.slots())
    await old.catalog.persistence.wait_until_stored(
        old.catalog.find("", old.engines[0].sessions.key(key).removeprefix("\0"))
    )
    assert not (await ask(owner, infer(1, sequence_start=True))).error_message
    make_idle(old)
    assert "another server" in (await ask(old, infer(2))).error_message
    assert not (await ask(old, infer(3, sequence_start=True))).error_message


async def test_answers_come_in_order(serve):
    """Steps of a stream that follow one which waits for a confirmation keep their places."""
    served, _ = await two_servers(serve)
    stream = served.stream()
    make_idle(served)
    for row in range(1, 6):
        stream.receive(pb.StreamRequest(request_id=row, step=step(row=row)).SerializeToString())
    alone = Alone(fakes.recurrence())
    alone.step(X[0])
    for row in range(1, 6):
        found = await answer(stream)
        assert (found.request_id, found.step.step_index) == (row, row)
        assert bits(found.step.y) == alone.step(X[row])
