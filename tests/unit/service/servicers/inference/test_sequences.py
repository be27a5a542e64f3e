"""Sequences: how they start, run on and end, in what order, and what a refused request leaves behind."""

import asyncio

import numpy as np
import pytest
from streamcell.inference import open_inference_pb2 as pb
from streamcell.v1 import streamcell_pb2 as api

from service.catalog.catalog import Catalog
from service.catalog.versions import Versions
from service.engine.work import Control
from service.rpc.statuses import RefusedError
from service.servicers.inference import parameters
from service.servicers.inference.inference_request import InferenceRequest
from service.servicers.inference.sequences import Sequences
from tests.fakes import INTERVAL_NS, Alone, Refusal, Rig, Served, recurrence, renamed, turn
from tests.inference import SERVICE, infer, y_of

X = np.random.default_rng(6).standard_normal((40, 2)).astype(np.float32)
HUGE = [3e38, 3e38]  # two in a row, and the prediction is not finite
INFER = f"{SERVICE}/ModelInfer"
T0 = 1_700_000_000 * 10**9
HOUR_MICROSECONDS = 3_600_000_000  # a time-out that does not pass


@pytest.fixture
async def served():
    """Two models, served."""
    return Served(recurrence(), renamed(recurrence(), "other", "2"))


async def step(served, x, sequence=7, principal="", **parameters):
    """Runs a request of one row and returns the prediction's bytes."""
    request = infer([x], sequence_id=sequence, **parameters)
    return y_of(await served.ask(INFER, request, principal)).tobytes()


async def refused(served, request, principal=""):
    """Returns the refusal of a request."""
    return await served.refused(INFER, request, principal)


def num_sessions(served):
    """Returns how many sessions are open, on all models."""
    return sum(len(engine.sessions) for engine in served.engines)


async def queued(served, request):
    """Returns the task of a request whose step is queued and has not run yet."""
    engine = served.engines[0]
    task = asyncio.create_task(served.ask(INFER, request))
    await turn()
    assert not engine.is_idle
    return task


class ManualSequences:
    """Sequences over an engine whose loop the test turns by hand."""

    def __init__(self):
        self.rig = Rig()
        self.subject = Sequences(Catalog(Versions([self.rig.engine])))
        self.submitted = []

    def submit(self, message):
        """Submits a message's request; returns a future of the request."""
        done = asyncio.get_running_loop().create_future()
        asked = parameters.read_parameters(self.rig.engine, message)
        rows = parameters.read_rows(asked, message, 100, self.rig.engine)
        self.submitted.append(
            InferenceRequest(asked, rows, "", arrived_ns=self.rig.engine.now(), on_done=done.set_result)
        )
        self.subject.submit(self.submitted[-1])
        return done

    def withdraw_last(self):
        """Withdraws the request that was submitted last."""
        self.subject.withdraw(self.submitted[-1])

    async def run(self, message):
        """Runs a message's request to its end and returns it."""
        done = self.submit(message)
        self.rig.run()
        return await done


class TestSteps:
    """What the requests of a sequence, and requests without a sequence, are answered."""

    @pytest.mark.parametrize("sequence", [7, -7, "seven", "with a space", "x" * 500])
    async def test_a_sequence_is_the_artifact_folded(self, served, sequence):
        """From its start to its end a sequence keeps its state between requests, and is gone afterwards."""
        alone = Alone(recurrence())
        for number, x in enumerate(X):
            flags = {"sequence_start": number == 0, "sequence_end": number == len(X) - 1}
            assert await step(served, x, sequence, **flags) == alone.step(x)
        assert num_sessions(served) == 0

    async def test_steps_in_a_row_equal_single_ones(self, served):
        """[1, T, F] is T steps, answered by [1, T, O], and one may follow the other."""
        first = y_of(await served.ask(INFER, infer(X[None, :30], sequence_id=1, sequence_start=True)))
        assert first.shape == (1, 30, 2)
        alone = Alone(recurrence())
        assert first.tobytes() == alone.fold(X[:30])
        assert await step(served, X[30], 1) == alone.step(X[30])

    async def test_a_response_names_its_request(self, served):
        """The response gives the id, model, version and sequence, and the index of the first step."""
        request = infer(X[None, :3], sequence_id="s", sequence_start=True, request_id="first")
        response = await served.ask(INFER, request)
        assert (response.id, response.model_name, response.model_version) == ("first", "recurrence", "1")
        assert response.parameters["sequence_id"].string_param == "s"
        response = await served.ask(INFER, infer(X[:1], sequence_id="s", request_id="second"))
        assert (response.id, response.parameters["step_index"].int64_param) == ("second", 3)

    async def test_without_a_sequence_steps_run_from_a_clean_state(self, served):
        """Each request stands alone, and leaves no session."""
        for x in (X[None, :5], X[None, :1]):
            for _ in range(2):
                response = await served.ask(INFER, infer(x))
                assert y_of(response).tobytes() == Alone(recurrence()).fold(x[0])
                assert not response.parameters
        assert num_sessions(served) == 0

    async def test_a_refused_request_without_a_sequence_leaves_no_session(self, served):
        """The model has no finite answer, and the session of the request is closed."""
        assert "no finite prediction" in (await refused(served, infer([[HUGE, HUGE, HUGE]]))).message
        assert num_sessions(served) == 0

    async def test_time_runs_on_by_the_interval(self):
        """Without a time a step follows the last one by the interval; an error names the field `time`."""
        served = Served(recurrence(uses_time=True))
        await step(served, X[0], sequence_start=True, time=[[T0]])
        await step(served, X[1])
        await served.ask(INFER, infer(X[None, 2:5], sequence_id=7))
        (slot,) = served.engines[0].sessions.idle_since(1 << 62)
        assert served.engines[0].sessions.progress.last_time[slot] == T0 + 4 * INTERVAL_NS
        await step(served, X[5], time=[[1 << 62]])
        assert (await refused(served, infer(X[:1], sequence_id=7))).metadata["field"] == "time"
        assert (await refused(served, infer(X[None, :3], sequence_id=7))).message.startswith("time: ")

    async def test_outputs_that_are_asked_for_are_given(self, served):
        """Asking for y by name, even twice, is asking for all there is."""
        request = infer(X[:1])
        request.outputs.extend([pb.ModelInferRequest.InferRequestedOutputTensor(name="y")] * 2)
        assert y_of(await served.ask(INFER, request)).shape == (1, 2)


class TestStarts:
    """Which requests start a sequence, and which need a live one."""

    async def test_a_sequence_must_start(self, served):
        """A step of an unknown sequence is refused and opens nothing."""
        refusal = await refused(served, infer(X[:1], sequence_id=9))
        assert (refusal.code, refusal.reason) == (5, "SESSION_NOT_FOUND")
        assert "'9' of recurrence/1 is not live: begin it with sequence_start" in refusal.message
        assert num_sessions(served) == 0

    async def test_an_expired_sequence_says_so(self, served):
        """A sequence that idled too long is not answered like one that never was."""
        await step(served, X[0], sequence_start=True)
        served.clock.now_ns += 10**9
        served.engines[0].expire_idle(10**8)
        refusal = await refused(served, infer(X[:1], sequence_id=7))
        assert refusal.reason == "SESSION_EXPIRED"
        assert "expired because it was idle" in refusal.message

    async def test_a_start_restarts_a_live_sequence(self, served):
        """A start with one step, or with several, begins again at a clean state, as in Triton."""
        await step(served, X[0], sequence_start=True)
        assert await step(served, X[1], sequence_start=True) == Alone(recurrence()).step(X[1])
        again = await served.ask(INFER, infer(X[None, :4], sequence_id=7, sequence_start=True))
        alone = Alone(recurrence())
        assert y_of(again).tobytes() == alone.fold(X[:4])
        assert await step(served, X[4]) == alone.step(X[4])
        assert num_sessions(served) == 1

    async def test_a_start_that_fails_begins_nothing(self, served):
        """A new sequence whose first request fails is not live."""
        assert (await refused(served, infer([[HUGE] * 9], sequence_id=3, sequence_start=True))).code == 3
        assert num_sessions(served) == 0


class TestFailures:
    """A request that fails leaves its sequence as it was."""

    @pytest.mark.parametrize("bad", [[[HUGE, HUGE, HUGE]], [[[0.5, 0.5], *[HUGE] * 8]]])
    async def test_a_failed_request_leaves_the_sequence_where_it_stood(self, served, bad):
        """No finite prediction, however late in the request: no step and no restart is applied."""
        alone = Alone(recurrence())
        for number in range(6):
            assert await step(served, X[number], sequence_start=number == 0) == alone.step(X[number])
        for flags in ({}, {"sequence_start": True}, {"sequence_end": True}):
            refusal = await refused(served, infer(bad, sequence_id=7, **flags))
            assert "x: the model has no finite prediction" in refusal.message
            assert refusal.metadata["field"] == "x"
        repeated = await served.ask(INFER, infer(X[5:6], sequence_id=7, step_index=5))  # still remembered
        assert repeated.parameters["step_index"].int64_param == 5
        assert await step(served, X[6]) == alone.step(X[6])

    async def test_a_restart_by_one_step_that_fails_is_undone(self, served):
        """A single step that the model cannot answer does not restart the sequence either."""
        artifact = recurrence()
        alone = Alone(artifact)
        assert await step(served, X[0], sequence_start=True) == alone.step(X[0])
        fault = infer([[31337.0, 0]], sequence_id=7, sequence_start=True)
        assert (await refused(served, fault)).reason == "INTERNAL"
        assert await step(served, X[1]) == alone.step(X[1])


class TestIdentity:
    """What a sequence id names."""

    async def test_a_sequence_belongs_to_a_model_and_a_caller(self, served):
        """The same id on two models, of two callers, or as number and text, names different sequences."""
        alone = [Alone(recurrence()) for _ in range(4)]
        for number, x in enumerate(X[:5]):
            flags = {"sequence_start": number == 0}
            assert await step(served, x, **flags) == alone[0].step(x)
            assert await step(served, x + 1, "7", **flags) == alone[1].step(x + 1)
            assert await step(served, x + 2, principal="you", **flags) == alone[2].step(x + 2)
            assert await step(served, x + 3, model="other", **flags) == alone[3].step(x + 3)

    async def test_a_sequence_is_a_session(self, served):
        """The Streamcell API finds it, may look ahead, and may end it."""
        await step(served, X[0], sequence_start=True)
        session_id = "inference:recurrence:int:7"
        found = await served.ask("GetSession", api.GetSessionRequest(session_id=session_id))
        assert found.session.next_step_index == 1
        await served.ask("CloseSession", api.CloseSessionRequest(session_id=session_id))
        assert (await refused(served, infer(X[:1], sequence_id=7))).reason == "SESSION_NOT_FOUND"

    async def test_a_session_of_another_model_with_the_id_of_a_sequence_is_refused(self, served):
        """A session on another model that has the id of a sequence is not used as the sequence."""
        await served.open("inference:recurrence:int:7", model="other")
        refusal = await refused(served, infer(X[:1], sequence_id=7))
        assert refusal.reason == "MODEL_CHANGED"

    async def test_models_are_found_by_name_and_version(self, served):
        """An unknown model is NOT_FOUND; a request without a name says which field is missing."""
        for request in (infer(X[:1], model="none"), infer(X[:1], version="9"), infer(X[:1], model="other/2")):
            assert (await refused(served, request)).reason == "MODEL_NOT_FOUND"
        nameless = await refused(served, infer(X[:1], model=""))
        assert nameless.metadata["field"] == "model_name"
        assert (await served.ask(INFER, infer(X[:1], model="other", version="2"))).model_version == "2"


class TestOrder:
    """Requests in flight together, and retries."""

    async def test_requests_at_once_are_answered_in_order(self, served):
        """Each request of a sequence sees the state that the request before left, whatever their kind."""
        requests = [
            infer(X[:1], sequence_id=7, sequence_start=True),
            infer(X[None, 1:9], sequence_id=7),
            infer(X[9:10], sequence_id=7),
            infer(X[10:11], sequence_id=7, sequence_end=True),
            infer(X[11:12], sequence_id=7, sequence_start=True),
            infer(X[12:13], sequence_id=7),
            infer(X[13:14], sequence_id=7, sequence_start=True, sequence_end=True),
            infer(X[14:15], sequence_id=7),
            infer(X[15:16], sequence_id=7, sequence_start=True),
        ]
        order = []

        async def ask(number, request):
            try:
                return y_of(await served.ask(INFER, request)).tobytes()
            except RefusedError as error:
                return Refusal.of(error.status).reason
            finally:
                order.append(number)

        found = await asyncio.gather(*(ask(*each) for each in enumerate(requests)))
        alone, after = Alone(recurrence()), Alone(recurrence())
        assert found == [
            alone.step(X[0]), alone.fold(X[1:9]), alone.step(X[9]), alone.step(X[10]),
            after.step(X[11]), after.step(X[12]),
            Alone(recurrence()).step(X[13]), "SESSION_NOT_FOUND", Alone(recurrence()).step(X[15]),
        ]  # fmt: skip
        assert order == sorted(order)

    async def test_a_retry_with_an_index_moves_nothing(self, served):
        """A retry gets the same bytes, a start too; another input is a conflict, a later index a gap."""
        start = infer(X[:1], sequence_id=7, sequence_start=True, step_index=0)
        first = [(await served.ask(INFER, start)).SerializeToString() for _ in range(3)]
        assert len(set(first)) == 1
        second = infer(X[1:2], sequence_id=7, step_index=1)
        assert len({(await served.ask(INFER, second)).SerializeToString() for _ in range(3)}) == 1
        conflict = await refused(served, infer(X[5:6], sequence_id=7, step_index=1))
        assert (conflict.code, conflict.reason) == (6, "STEP_CONFLICT")
        gap = await refused(served, infer(X[5:6], sequence_id=7, step_index=5))
        assert (gap.code, gap.metadata["expected_step_index"]) == (9, "2")
        several = await served.ask(INFER, infer(X[None, :4], sequence_id=7, step_index=0))
        assert y_of(several).tobytes() == Alone(recurrence()).fold(X[:4])
        assert several.parameters["step_index"].int64_param == 0

    async def test_work_of_other_apis_keeps_its_place(self, served):
        """A control of the session stays in its place among the sequence's steps."""
        await step(served, X[0], sequence_start=True)
        engine = served.engines[0]
        slot = engine.sessions.find("\0inference:recurrence:int:7")
        seen = []
        task = await queued(served, infer(X[1:2], sequence_id=7))
        engine.submit(
            Control(
                slot,
                int(engine.sessions.generation[slot]),
                lambda slot: seen.append(int(engine.sessions.progress.next_step[slot])),
                arrived_ns=0,
                on_done=lambda _: None,
            )
        )
        await task
        await step(served, X[2])
        assert seen == [2]


class TestTimeOuts:
    """Requests whose time-out passes."""

    async def test_a_request_whose_time_out_passes_is_withdrawn(self):
        """Its batch has not been formed: the answer is DEADLINE_EXCEEDED and nothing moves."""
        sequences = ManualSequences()
        await sequences.run(infer(X[:1], sequence_id=7, sequence_start=True))
        for late in (infer(X[1:2], sequence_id=7, timeout=1), infer(X[None, 1:4], sequence_id=7, timeout=1)):
            error = (await sequences.submit(late)).error
            assert (error.code, error.reason) == (4, "TIMED_OUT")
            assert "1 µs" in error.message
        after = await sequences.run(infer(X[1:2], sequence_id=7))
        assert after.step_index == 1

    async def test_a_start_and_an_end_that_time_out_change_nothing(self):
        """A start begins no sequence, an end ends none, and the request behind the end runs."""
        sequences = ManualSequences()
        start = infer(X[:1], sequence_id=7, sequence_start=True, timeout=1)
        await sequences.submit(start)
        assert len(sequences.rig.engine.sessions) == 0
        await sequences.run(infer(X[:1], sequence_id=7, sequence_start=True))
        end = sequences.submit(infer(X[1:2], sequence_id=7, sequence_end=True, timeout=1))
        waiting = sequences.submit(infer(X[2:3], sequence_id=7))
        assert (await end).error.reason == "TIMED_OUT"
        sequences.rig.run()
        assert (await waiting).step_index == 1

    async def test_a_request_that_waits_for_an_end_can_time_out(self):
        """The request is answered at once, and passed over when the sequence has ended."""
        sequences = ManualSequences()
        await sequences.run(infer(X[:1], sequence_id=7, sequence_start=True))
        end = sequences.submit(infer(X[1:2], sequence_id=7, sequence_end=True))
        late = sequences.submit(infer(X[2:3], sequence_id=7, sequence_start=True, timeout=1))
        assert (await late).error.reason == "TIMED_OUT"
        sequences.rig.run()
        await end
        assert len(sequences.rig.engine.sessions) == 0

    async def test_a_request_that_has_begun_does_not_time_out(self):
        """A long request runs to its end, however long that takes."""
        sequences = ManualSequences()
        done = sequences.submit(infer(X[None, :9], sequence_id=7, sequence_start=True, timeout=1))
        sequences.rig.loop.turn()  # its first piece
        passed = asyncio.Event()
        asyncio.get_running_loop().call_at(sequences.submitted[-1].timer.when(), passed.set)
        await passed.wait()
        await turn()
        sequences.rig.run()
        assert (await done).error is None

    async def test_a_time_out_that_does_not_pass_changes_nothing(self, served):
        """A step that runs in time is answered."""
        assert await step(served, X[0], sequence_start=True, timeout=HOUR_MICROSECONDS) == Alone(
            recurrence()
        ).step(X[0])


class TestBounds:
    """A full table, a full queue, a server that drains."""

    async def test_a_full_table_refuses_new_sequences(self):
        """A sequence and a request without one are refused with SESSIONS_FULL; live sequences run on."""
        served = Served(max_resident_sessions=2)
        for sequence in (1, 2):
            await step(served, X[0], sequence, sequence_start=True)
        for request in (infer(X[:1], sequence_id=3, sequence_start=True), infer(X[:1])):
            assert (await refused(served, request)).reason == "SESSIONS_FULL"
        await step(served, X[1], 1, sequence_end=True)
        await step(served, X[0], 3, sequence_start=True)

    async def test_a_full_queue_refuses_and_opens_nothing(self):
        """The refusal is OVERLOADED with a delay, and leaves no session."""
        served = Served(max_queue_steps=4)
        first = asyncio.create_task(served.ask(INFER, infer(X[None, :4], sequence_id=1, sequence_start=True)))
        second = asyncio.create_task(refused(served, infer(X[:1], sequence_id=2, sequence_start=True)))
        refusal = await second
        assert (refusal.code, refusal.reason) == (8, "OVERLOADED")
        assert refusal.retry_delay_seconds > 0
        await first
        assert num_sessions(served) == 1

    async def test_a_draining_server_refuses(self, served):
        """New requests get DRAINING, those of live sequences too."""
        await step(served, X[0], sequence_start=True)
        served.catalog.is_draining = True
        for request in (infer(X[:1], sequence_id=7), infer(X[:1])):
            assert (await refused(served, request)).reason == "DRAINING"


class TestWithdrawal:
    """Callers that go before they are answered."""

    async def test_a_request_that_has_not_begun_is_withdrawn_with_its_caller(self):
        """A withdrawn start opens nothing, a withdrawn end ends nothing, and the request behind it runs."""
        sequences = ManualSequences()
        sequences.submit(infer(X[:1], sequence_id=1, sequence_start=True))
        sequences.withdraw_last()
        sequences.submit(infer(X[None, :3]))
        sequences.withdraw_last()
        assert len(sequences.rig.engine.sessions) == 0
        await sequences.run(infer(X[:1], sequence_id=7, sequence_start=True))
        sequences.submit(infer(X[1:2], sequence_id=7, sequence_end=True))
        ending = sequences.submitted[-1]
        waiting = sequences.submit(infer(X[2:3], sequence_id=7))
        sequences.subject.withdraw(ending)
        sequences.rig.run()
        assert (await waiting).step_index == 1

    async def test_a_request_that_waits_for_an_end_can_be_withdrawn(self):
        """The request is passed over when the sequence has ended; the request behind it is not."""
        sequences = ManualSequences()
        await sequences.run(infer(X[:1], sequence_id=7, sequence_start=True))
        sequences.submit(infer(X[1:2], sequence_id=7, sequence_end=True))
        sequences.submit(infer(X[2:3], sequence_id=7, sequence_start=True, timeout=HOUR_MICROSECONDS))
        sequences.withdraw_last()
        behind = sequences.submit(infer(X[3:4], sequence_id=7))
        sequences.rig.run()
        assert (await behind).error.reason == "SESSION_NOT_FOUND"

    async def test_steps_that_ran_stay_applied_when_the_caller_goes(self):
        """They do for a long request of a sequence; a request without one leaves no session."""
        sequences = ManualSequences()
        for flags, num_left in (({}, 0), ({"sequence_id": 7, "sequence_start": True}, 1)):
            sequences.submit(infer(X[None, :9], **flags))
            sequences.rig.loop.turn()  # its first piece
            sequences.withdraw_last()
            sequences.rig.run()
            assert len(sequences.rig.engine.sessions) == num_left
        assert (await sequences.run(infer(X[:1], sequence_id=7))).step_index == 4

    async def test_a_request_that_is_over_can_be_withdrawn(self):
        """A caller may go in the moment of its answer or of its time-out: nothing changes."""
        sequences = ManualSequences()
        await sequences.run(infer(X[:1], sequence_id=7, sequence_start=True))
        sequences.withdraw_last()
        await sequences.submit(infer(X[1:2], sequence_id=7, timeout=1))
        sequences.withdraw_last()
        assert (await sequences.run(infer(X[1:2], sequence_id=7))).step_index == 1

    async def test_a_cancelled_call_leaves_the_sequence_live(self, served):
        """A caller cancels its ModelInfer: the sequence lives and runs on."""
        await step(served, X[0], sequence_start=True)
        task = await queued(served, infer(X[1:2], sequence_id=7))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await step(served, X[2])
