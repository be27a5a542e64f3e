"""The unary methods, over real gRPC."""

import asyncio

import numpy as np
import pytest
from streamcell.v1 import streamcell_pb2 as pb

from tests.integration.conftest import folded, inputs, refusal, unused_id


class TestModels:
    """The list of models."""

    async def test_models_are_listed_with_what_their_rows_mean(self, peer):
        """ListModels gives a client everything that it needs to form a step."""
        models = (await peer.stub.ListModels(pb.ListModelsRequest())).models
        taxi = next(model for model in models if model.name == "nyc-taxi")
        assert (taxi.version, taxi.uses_time, taxi.step_interval_seconds) == ("1", True, 1800.0)
        assert [part.name for part in taxi.inputs] == ["value"]
        assert taxi.outputs[0].target == "value"
        assert taxi.status == pb.MODEL_STATUS_SERVING
        assert '"format_version"' in taxi.manifest_json


class TestSteps:
    """Single steps."""

    async def test_steps_give_what_the_artifact_gives(self, peer, mackey_glass):
        """A session id and lists of floats are enough; the answers are the artifact folded over the lists."""
        x = inputs(seed=1, num_steps=30)
        session_id = await peer.open()
        got = [(await peer.stub.Step(pb.StepRequest(session_id=session_id, x=row))).y for row in x]
        assert np.array_equal(np.array(got, np.float32), folded(mackey_glass, x))

    async def test_a_step_of_index_0_opens_its_session(self, peer):
        """A client needs no second method to begin."""
        session_id = unused_id()
        response = await peer.stub.Step(
            pb.StepRequest(session_id=session_id, model="mackey-glass", x=[0.9], step_index=0)
        )
        assert response.step_index == 0
        session = (await peer.stub.GetSession(pb.GetSessionRequest(session_id=session_id))).session
        assert (session.model_name, session.next_step_index) == ("mackey-glass", 1)

    async def test_a_first_step_that_is_refused_opens_nothing(self, peer):
        """A wrong value at index 0 leaves no session behind."""
        session_id = unused_id()
        wrong = pb.StepRequest(session_id=session_id, model="nyc-taxi", x=[1.0], step_index=0)
        assert (await refusal(peer.stub.Step(wrong))).metadata["field"] == "time_ns"
        missing = await refusal(peer.stub.GetSession(pb.GetSessionRequest(session_id=session_id)))
        assert missing.reason == "SESSION_NOT_FOUND"

    async def test_a_repeated_step_gets_the_same_bytes(self, peer):
        """A retry moves nothing, however often it comes."""
        session_id = await peer.open()
        request = pb.StepRequest(session_id=session_id, x=[0.7], step_index=0)
        first = await peer.stub.Step(request)
        again = [await peer.stub.Step(request) for _ in range(3)]
        assert {reply.SerializeToString() for reply in again} == {first.SerializeToString()}
        session = (await peer.stub.GetSession(pb.GetSessionRequest(session_id=session_id))).session
        assert session.next_step_index == 1

    @pytest.mark.parametrize(
        ("step_index", "x", "code", "reason"),
        [
            (11, 0.5, "FAILED_PRECONDITION", "STEP_GAP"),
            (9, 0.123, "ALREADY_EXISTS", "STEP_CONFLICT"),
            (0, 0.5, "OUT_OF_RANGE", "STEP_FORGOTTEN"),
            ((1 << 64) - 1, 0.5, "FAILED_PRECONDITION", "STEP_GAP"),
        ],
    )
    async def test_a_step_that_is_not_the_next_is_refused_with_its_reason(
        self, peer, step_index, x, code, reason
    ):
        """A gap, a conflicting input, and a forgotten index have their reasons; nothing moves."""
        session_id = await peer.open()
        for _ in range(10):
            await peer.stub.Step(pb.StepRequest(session_id=session_id, x=[0.5]))
        found = await refusal(
            peer.stub.Step(pb.StepRequest(session_id=session_id, x=[x], step_index=step_index))
        )
        assert (found.code, found.reason) == (code, reason)
        if reason in ("STEP_GAP", "STEP_FORGOTTEN"):
            assert found.metadata["expected_step_index"] == "10"
        session = (await peer.stub.GetSession(pb.GetSessionRequest(session_id=session_id))).session
        assert session.next_step_index == 10

    async def test_time_runs_on_by_the_models_interval(self, peer):
        """On a model with time, a step without a time is one step interval after the last step."""
        start_ns, session_id = 1_420_070_400 * 10**9, unused_id()
        first = pb.StepRequest(session_id=session_id, x=[10_000], step_index=0, time_ns=start_ns)
        first.model = "nyc-taxi"
        await peer.stub.Step(first)
        await peer.stub.Step(pb.StepRequest(session_id=session_id, x=[11_000]))
        session = (await peer.stub.GetSession(pb.GetSessionRequest(session_id=session_id))).session
        assert session.last_time_ns == start_ns + 1800 * 10**9

    async def test_fifty_sessions_at_once_give_the_same_bits_as_each_alone(self, peer, mackey_glass):
        """Other sessions in the batch change no bit."""
        xs = [inputs(seed, num_steps=40) for seed in range(50)]

        async def run(x):
            session_id = await peer.open()
            replies = [await peer.stub.Step(pb.StepRequest(session_id=session_id, x=row)) for row in x]
            return np.array([reply.y for reply in replies], np.float32)

        together = await asyncio.gather(*map(run, xs))
        for x, y in zip(xs, together, strict=True):
            assert np.array_equal(y, folded(mackey_glass, x))


class TestHistoriesAndForecasts:
    """Many steps back or ahead."""

    async def test_priming_equals_stepping(self, peer, mackey_glass):
        """A history in one request, in either form, moves the session as single steps would."""
        x = inputs(seed=2, num_steps=200)
        expected = folded(mackey_glass, np.concatenate([x, x[:1]]))
        for request in (pb.PrimeRequest(x_raw=x.tobytes()), pb.PrimeRequest(x=x[:, 0])):
            request.session_id = await peer.open()
            primed = await peer.stub.Prime(request)
            assert primed.step_index == 199
            assert np.float32(primed.y[0]) == expected[199, 0]
            after = await peer.stub.Step(pb.StepRequest(session_id=request.session_id, x=x[0]))
            assert np.float32(after.y[0]) == expected[200, 0]

    async def test_a_repeated_prime_applies_only_what_is_new(self, peer, mackey_glass):
        """A prime that is repeated after a lost answer, and is longer by then, is not applied twice."""
        x = inputs(seed=3, num_steps=40)
        session_id = await peer.open()
        await peer.stub.Prime(pb.PrimeRequest(session_id=session_id, x_raw=x[:30].tobytes(), step_index=0))
        again = await peer.stub.Prime(
            pb.PrimeRequest(session_id=session_id, x_raw=x[:30].tobytes(), step_index=0)
        )
        longer = await peer.stub.Prime(
            pb.PrimeRequest(session_id=session_id, x_raw=x.tobytes(), step_index=0)
        )
        expected = folded(mackey_glass, x)
        assert (again.step_index, longer.step_index) == (29, 39)
        assert np.float32(again.y[0]) == expected[29, 0]
        assert np.float32(longer.y[0]) == expected[39, 0]

    async def test_a_forecast_leaves_the_session_as_it_was(self, peer, mackey_glass):
        """A forecast changes nothing, and its first row is the last step's prediction."""
        x = inputs(seed=4, num_steps=20)
        session_id = await peer.open()
        primed = await peer.stub.Prime(pb.PrimeRequest(session_id=session_id, x_raw=x[:19].tobytes()))
        ahead = await peer.stub.Forecast(pb.ForecastRequest(session_id=session_id, horizon_steps=120))
        assert ahead.next_step_index == 19
        assert len(ahead.y) == 120
        assert ahead.y[0] == pytest.approx(primed.y[0], rel=1e-6)
        step = await peer.stub.Step(pb.StepRequest(session_id=session_id, x=x[19]))
        assert np.float32(step.y[0]) == folded(mackey_glass, x)[19, 0]


class TestSessions:
    """The life of a session: open, reset, snapshot, close."""

    async def test_reset_starts_the_session_again(self, peer, mackey_glass):
        """After a reset the same inputs give the same predictions, from step 0."""
        session_id = await peer.open()
        for _ in range(2):
            y = [
                (await peer.stub.Step(pb.StepRequest(session_id=session_id, x=row))).y[0]
                for row in inputs(seed=5, num_steps=5)
            ]
            assert np.array_equal(
                np.array(y, np.float32), folded(mackey_glass, inputs(seed=5, num_steps=5))[:, 0]
            )
            session = (await peer.stub.ResetSession(pb.ResetSessionRequest(session_id=session_id))).session
            assert session.next_step_index == 0

    async def test_close_forgets_the_session(self, peer):
        """A closed session is not found; a second close is an error unless the session may be missing."""
        session_id = await peer.open()
        await peer.stub.Step(pb.StepRequest(session_id=session_id, x=[0.5]))
        closed = await peer.stub.CloseSession(pb.CloseSessionRequest(session_id=session_id))
        assert closed.num_steps == 1
        gone = await refusal(peer.stub.Step(pb.StepRequest(session_id=session_id, x=[0.5])))
        assert (gone.code, gone.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")
        again = await refusal(peer.stub.CloseSession(pb.CloseSessionRequest(session_id=session_id)))
        assert again.reason == "SESSION_NOT_FOUND"
        await peer.stub.CloseSession(pb.CloseSessionRequest(session_id=session_id, allow_missing=True))

    async def test_the_mode_of_open_decides_whether_a_session_may_exist(self, peer):
        """A session that exists keeps its progress, and is never replaced."""
        open_session, session_id = peer.stub.OpenSession, unused_id()
        resume = pb.OpenSessionRequest(session_id=session_id, mode=pb.OPEN_MODE_RESUME)
        assert (await refusal(open_session(resume))).reason == "SESSION_NOT_FOUND"
        create = pb.OpenSessionRequest(session_id=session_id, model="mackey-glass", mode=pb.OPEN_MODE_CREATE)
        assert (await open_session(create)).created
        assert (await refusal(open_session(create))).reason == "SESSION_EXISTS"
        await peer.stub.Step(pb.StepRequest(session_id=session_id, x=[0.5]))
        for request in (resume, pb.OpenSessionRequest(session_id=session_id)):
            found = await open_session(request)
            assert (found.created, found.session.next_step_index) == (False, 1)
        other = await refusal(open_session(pb.OpenSessionRequest(session_id=session_id, model="nyc-taxi")))
        assert (other.code, other.reason) == ("FAILED_PRECONDITION", "MODEL_CHANGED")

    async def test_a_restored_session_and_a_fork_continue_where_the_original_was(self, peer, mackey_glass):
        """Both have the bits and the remembered replies of the original, which goes on undisturbed."""
        x = inputs(5, 12)
        session_id, restored, forked = await peer.open(), unused_id(), unused_id()
        for row in x[:6]:
            await peer.stub.Step(pb.StepRequest(session_id=session_id, x=row))
        taken = await peer.stub.SnapshotSession(pb.SnapshotSessionRequest(session_id=session_id))
        assert taken.session.next_step_index == 6
        restore = pb.RestoreSessionRequest(snapshot=taken.snapshot, session_id=restored)
        assert (await peer.stub.RestoreSession(restore)).session.next_step_index == 6
        fork = pb.ForkSessionRequest(session_id=session_id, new_session_id=forked)
        assert (await peer.stub.ForkSession(fork)).session.next_step_index == 6
        for name in (session_id, restored, forked):
            replies = [await peer.stub.Step(pb.StepRequest(session_id=name, x=x[5], step_index=5))]
            replies += [await peer.stub.Step(pb.StepRequest(session_id=name, x=row)) for row in x[6:]]
            assert np.array_equal([reply.y for reply in replies], folded(mackey_glass, x)[5:])
        for method, request in ((peer.stub.RestoreSession, restore), (peer.stub.ForkSession, fork)):
            assert (await refusal(method(request))).reason == "SESSION_EXISTS"
        damaged = taken.snapshot[:-1] + bytes([taken.snapshot[-1] ^ 1])
        for raw in (b"", b"SCSN", damaged, taken.snapshot[:-10]):
            found = await refusal(peer.stub.RestoreSession(pb.RestoreSessionRequest(snapshot=raw)))
            assert (found.code, found.reason) == ("FAILED_PRECONDITION", "SNAPSHOT_REJECTED")
