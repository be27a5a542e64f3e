"""The unary methods, over the real engine and without a network."""

import asyncio

import numpy as np
import pytest
from streamcell.v1 import streamcell_pb2 as pb

from service.engine import pacer
from service.rpc.methods import Call, Unary
from service.rpc.statuses import RefusedError
from tests import fakes
from tests.fakes import FAULT, FAULT_TEXT, INTERVAL_NS, Alone, Served, bits, renamed, turn

X = np.random.default_rng(2).standard_normal((40, 2)).astype(np.float32)


@pytest.fixture
async def served():
    """One model, served."""
    return Served()


def step(session_id="s", x=(1, 2), **fields):
    """Returns a step request."""
    return pb.StepRequest(session_id=session_id, x=x, **fields)


class ManualTimer:
    """Stands in for the event loop's timer: delays end when a test fires it, not when time passes."""

    def __init__(self):
        self._functions = []

    def call_later(self, delay, function):
        """Remembers a function until `fire`."""
        self._functions.append(function)

    async def fire(self):
        """Waits until a delay has begun, then ends it."""
        while not self._functions:
            await turn()
        functions, self._functions = self._functions, []
        for function in functions:
            function()


@pytest.fixture
async def timer(monkeypatch):
    """Delays each iteration that may be delayed, until the test fires the timer."""
    timer = ManualTimer()
    monkeypatch.setattr(pacer, "_TRY_EVERY", 1)
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", timer.call_later)
    return timer


class TestMethods:
    """All methods together."""

    async def test_every_method_of_the_proto_is_served(self, served):
        """The service has each method of the proto under its path, and no others."""
        service = pb.DESCRIPTOR.services_by_name["StreamcellService"]
        ours = {path for path in served.router.methods if path.startswith(f"/{service.full_name}/")}
        assert ours == {f"/{service.full_name}/{method.name}" for method in service.methods}
        for method in service.methods:
            is_unary = isinstance(served.router.methods[f"/{service.full_name}/{method.name}"], Unary)
            assert is_unary != method.client_streaming

    @pytest.mark.parametrize(
        ("name", "request_of"),
        [
            ("GetSession", lambda id_: pb.GetSessionRequest(session_id=id_)),
            ("ResetSession", lambda id_: pb.ResetSessionRequest(session_id=id_)),
            ("CloseSession", lambda id_: pb.CloseSessionRequest(session_id=id_)),
            ("Step", lambda id_: step(id_)),
            ("Prime", lambda id_: pb.PrimeRequest(session_id=id_, x=[1, 2])),
            ("Forecast", lambda id_: pb.ForecastRequest(session_id=id_, horizon_steps=1)),
            ("ForkSession", lambda id_: pb.ForkSessionRequest(session_id=id_, new_session_id="copy")),
            ("SnapshotSession", lambda id_: pb.SnapshotSessionRequest(session_id=id_)),
            ("OpenSession", lambda id_: pb.OpenSessionRequest(session_id=id_, mode=pb.OPEN_MODE_RESUME)),
        ],
    )
    async def test_another_principals_session_is_not_found(self, served, name, request_of):
        """Every method finds the caller's own sessions only, and needs an id."""
        await served.open("hers", principal="alice")
        await served.ask("Step", step("hers"), principal="alice")
        assert (await served.refused(name, request_of("hers"), principal="bob")).reason == "SESSION_NOT_FOUND"
        assert (await served.refused(name, request_of(""))).metadata == {"field": "session_id"}
        await served.ask(name, request_of("hers"), principal="alice")

    async def test_requests_that_cannot_be_parsed_are_refused(self, served):
        """Every method answers INVALID_ARGUMENT to junk."""
        for path, method in served.router.methods.items():
            if isinstance(method, Unary) and "Streamcell" in path:
                with pytest.raises(RefusedError) as caught:
                    await served.router.answer(method, b"\xff\xff\xff", Call())
                assert fakes.Refusal.of(caught.value.status).metadata == {"field": "message"}, path

    async def test_a_draining_server_refuses_new_work_and_finishes_the_old(self, served):
        """Calls in flight are answered; later calls are DRAINING."""
        await served.open("s")
        under_way = asyncio.create_task(served.ask("Prime", pb.PrimeRequest(session_id="s", x=X.ravel())))
        await turn()
        served.catalog.is_draining = True
        for name, request in (
            ("Step", step()),
            ("OpenSession", pb.OpenSessionRequest()),
            ("Step", step("t", step_index=0)),
        ):
            assert (await served.refused(name, request)).reason == "DRAINING"
        assert (await under_way).step_index == 39


class TestListModels:
    """The models of a server."""

    async def test_models_are_listed_by_name_then_version(self):
        """Every model and version served is listed."""
        served = Served(
            *(renamed(fakes.recurrence(), *parts) for parts in (("b", "1"), ("a", "10"), ("a", "9")))
        )
        models = (await served.ask("ListModels", pb.ListModelsRequest())).models
        assert [(model.name, model.version) for model in models] == [("a", "9"), ("a", "10"), ("b", "1")]


class TestOpenSession:
    """Sessions are opened and found."""

    async def test_open_creates_and_then_finds(self, served):
        """By default a free id is opened, and an id in use is found with its next step index."""
        first = await served.ask("OpenSession", pb.OpenSessionRequest(session_id="s"))
        await served.ask("Step", step())
        second = await served.ask("OpenSession", pb.OpenSessionRequest(session_id="s"))
        assert (first.created, first.session.next_step_index) == (True, 0)
        assert (second.created, second.session.next_step_index) == (False, 1)

    async def test_open_without_an_id_gets_a_fresh_one(self, served):
        """Each call without an id gets another id."""
        first, second = [await served.ask("OpenSession", pb.OpenSessionRequest()) for _ in range(2)]
        assert first.created
        assert first.session.session_id != second.session.session_id

    async def test_modes_limit_open_to_new_or_existing_sessions(self, served):
        """CREATE refuses an id in use, RESUME a free one; RESUME without an id names the field."""
        create = pb.OpenSessionRequest(session_id="s", mode=pb.OPEN_MODE_CREATE)
        resume = pb.OpenSessionRequest(session_id="s", mode=pb.OPEN_MODE_RESUME)
        assert (await served.refused("OpenSession", resume)).reason == "SESSION_NOT_FOUND"
        assert (await served.ask("OpenSession", create)).created
        assert (await served.refused("OpenSession", create)).reason == "SESSION_EXISTS"
        assert not (await served.ask("OpenSession", resume)).created
        nameless = await served.refused("OpenSession", pb.OpenSessionRequest(mode=pb.OPEN_MODE_RESUME))
        assert nameless.metadata == {"field": "session_id"}

    async def test_open_checks_the_model(self, served):
        """An unknown model is not found, another than the session's is MODEL_CHANGED; nothing is opened."""
        asked = pb.OpenSessionRequest(session_id="s", model="other")
        assert (await served.refused("OpenSession", asked)).reason == "MODEL_NOT_FOUND"
        assert len(served.engines[0].sessions) == 0
        await served.open("s")
        assert (await served.refused("OpenSession", asked)).reason == "MODEL_CHANGED"

    async def test_durable_sessions_need_a_store(self, served):
        """Without a store the field is named as at fault."""
        found = await served.refused("OpenSession", pb.OpenSessionRequest(durable=True))
        assert found.metadata == {"field": "durable"}

    async def test_an_expired_session_is_reopened_only_if_asked(self, served):
        """RESUME and Step answer SESSION_EXPIRED; OpenSession by default begins anew."""
        await served.open("s")
        served.clock.now_ns += 10
        served.engines[0].expire_idle(5)
        resume = pb.OpenSessionRequest(session_id="s", mode=pb.OPEN_MODE_RESUME)
        assert (await served.refused("OpenSession", resume)).reason == "SESSION_EXPIRED"
        assert (await served.refused("Step", step())).reason == "SESSION_EXPIRED"
        assert (await served.ask("OpenSession", pb.OpenSessionRequest(session_id="s"))).created


class TestGetSession:
    """A session's position."""

    async def test_get_sees_every_step_asked_before(self, served):
        """A step sent before the call is applied in the answer."""
        await served.open("s")
        _, found = await asyncio.gather(
            served.ask("Step", step()), served.ask("GetSession", pb.GetSessionRequest(session_id="s"))
        )
        assert found.session.next_step_index == 1

    async def test_get_counts_as_use(self, served):
        """A session that is asked for does not expire."""
        await served.open("s")
        served.clock.now_ns += 10
        await served.ask("GetSession", pb.GetSessionRequest(session_id="s"))
        served.engines[0].expire_idle(5)
        assert len(served.engines[0].sessions) == 1


class TestResetSession:
    """A session starts again."""

    async def test_reset_puts_a_session_back(self, served):
        """Its next step index is 0, and it predicts as a new session does."""
        await served.open("s")
        await served.ask("Step", step(x=(5, 5)))
        found = await served.ask("ResetSession", pb.ResetSessionRequest(session_id="s"))
        assert found.session.next_step_index == 0
        again = await served.ask("Step", step(x=X[0]))
        assert bits(again.y) == Alone(fakes.recurrence()).step(X[0])


class TestCloseSession:
    """A session ends."""

    async def test_close_returns_the_number_of_steps(self, served):
        """Afterwards there is no such session; with allow_missing that is no error."""
        await served.open("s")
        await served.ask("Step", step())
        assert (await served.ask("CloseSession", pb.CloseSessionRequest(session_id="s"))).num_steps == 1
        again = pb.CloseSessionRequest(session_id="s")
        assert (await served.refused("CloseSession", again)).reason == "SESSION_NOT_FOUND"
        again.allow_missing = True
        assert (await served.ask("CloseSession", again)).num_steps == 0

    async def test_of_two_closes_at_once_one_finds_nothing(self, served):
        """The second close is an error, or with allow_missing none."""
        for allow_missing in (False, True):
            await served.open("s")
            request = pb.CloseSessionRequest(session_id="s", allow_missing=allow_missing)
            found = await asyncio.gather(
                *(served.ask("CloseSession", request) for _ in range(2)), return_exceptions=True
            )
            assert [isinstance(one, pb.CloseSessionResponse) for one in found] == [True, allow_missing]
        assert len(served.engines[0].sessions) == 0


class TestStep:
    """Single steps."""

    async def test_steps_predict_as_the_artifact_does(self, served):
        """Predictions have the artifact's bits, in order, with their indexes."""
        await served.open("s")
        found = [await served.ask("Step", step(x=row)) for row in X]
        assert b"".join(bits(one.y) for one in found) == Alone(fakes.recurrence()).fold(X)
        assert [one.step_index for one in found] == list(range(40))

    async def test_step_zero_opens_its_session(self, served):
        """One call is enough; sent again it is a repeat, and no second session is opened."""
        first = await served.ask("Step", step(step_index=0, model="recurrence/1"))
        again = await served.ask("Step", step(step_index=0))
        assert first == again
        assert len(served.engines[0].sessions) == 1

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({}, "SESSION_NOT_FOUND"),
            ({"step_index": 1}, "SESSION_NOT_FOUND"),
            ({"step_index": 0, "model": "other"}, "MODEL_NOT_FOUND"),
            ({"step_index": 0, "x": (1,)}, "INVALID_ARGUMENT"),
            ({"step_index": 0, "session_id": "a b"}, "INVALID_ARGUMENT"),
            ({"step_index": 0, "session_id": ""}, "INVALID_ARGUMENT"),
        ],
    )
    async def test_a_wrong_step_opens_nothing(self, served, fields, reason):
        """A step without a session, or with wrong values, leaves no session behind."""
        assert (await served.refused("Step", step(**fields))).reason == reason
        assert len(served.engines[0].sessions) == 0
        assert len(served.errors) == 1

    async def test_a_first_step_without_its_time_opens_nothing(self):
        """For a model that uses times."""
        served = Served(fakes.recurrence(uses_time=True))
        assert (await served.refused("Step", step(step_index=0))).metadata == {"field": "time_ns"}
        assert len(served.engines[0].sessions) == 0
        await served.ask("Step", step(step_index=0, time_ns=INTERVAL_NS))

    async def test_the_step_protocol_shows_in_statuses(self, served):
        """Repeats get the same bytes; gaps and conflicts are refused with the facts."""
        first = await served.ask("Step", step(step_index=0))
        assert await served.ask("Step", step(step_index=0)) == first
        assert (await served.refused("Step", step(step_index=2))).metadata == {"expected_step_index": "1"}
        assert (await served.refused("Step", step(step_index=0, x=(9, 9)))).reason == "STEP_CONFLICT"
        assert (await served.refused("Step", step(model="b"))).reason == "MODEL_CHANGED"
        for row in X[:8]:
            await served.ask("Step", step(x=row))
        assert (await served.refused("Step", step(step_index=0))).reason == "STEP_FORGOTTEN"

    async def test_steps_of_many_callers_share_a_batch(self, served):
        """Calls that wait at the same time run in one iteration."""
        await served.open(*"abcdefgh")
        before = served.metrics.registry.get_sample_value(
            "streamcell_batch_steps_count", {"model": "recurrence", "version": "1"}
        )
        found = await asyncio.gather(*(served.ask("Step", step(name)) for name in "abcdefgh"))
        assert {bits(one.y) for one in found} == {Alone(fakes.recurrence()).step((1, 2))}
        after = served.metrics.registry.get_sample_value(
            "streamcell_batch_steps_count", {"model": "recurrence", "version": "1"}
        )
        assert after - before == 1

    async def test_a_fault_leaks_nothing(self, served, caplog):
        """The answer is INTERNAL with an id; the model's own words are in the log alone."""
        await served.open("s")
        found = await served.refused("Step", step(x=(FAULT, 0)))
        assert found.reason == "INTERNAL"
        assert FAULT_TEXT not in found.message
        assert FAULT_TEXT in caplog.text
        assert (await served.ask("Step", step())).step_index == 0

    async def test_a_full_queue_answers_with_a_delay(self):
        """The step is OVERLOADED, and steps in the queue are answered."""
        served = Served(max_queue_steps=2)
        await served.open("a", "b", "c")
        found = await asyncio.gather(
            served.ask("Step", step("a")), served.ask("Step", step("b")), served.refused("Step", step("c"))
        )
        assert found[2].reason == "OVERLOADED"
        assert found[2].retry_delay_seconds > 0
        assert [one.step_index for one in found[:2]] == [0, 0]


class TestCancelledStep:
    """A caller goes away."""

    async def test_a_call_cancelled_at_once_asks_nothing(self, served):
        """The other call is answered, and no work is left."""
        await served.open("a", "b")
        going, staying = (asyncio.create_task(served.ask("Step", step(name))) for name in "ab")
        going.cancel()
        assert (await staying).step_index == 0
        with pytest.raises(asyncio.CancelledError):
            await going
        assert served.engines[0].is_idle

    async def test_a_call_cancelled_in_the_queue_withdraws_its_step(self, served):
        """The step was queued, and its batch not formed."""
        await served.open("a")
        behind = asyncio.create_task(served.ask("Prime", pb.PrimeRequest(session_id="a", x=X.ravel())))
        going = asyncio.create_task(served.ask("Step", step("a")))
        await turn()
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        await behind
        found = await served.ask("GetSession", pb.GetSessionRequest(session_id="a"))
        assert found.session.next_step_index == 40
        assert served.errors == []


class TestDelayedStep:
    """Unary steps that wait a moment for others."""

    async def test_delayed_calls_are_answered_in_a_drain(self, timer):
        """A server that stops drops no delayed call; later calls are DRAINING."""
        served = Served(max_hold_seconds=pacer.TICK_SECONDS)
        await served.open("a", "b")
        calls = [asyncio.create_task(served.ask("Step", step(name))) for name in "ab"]
        while served.engines[0].is_idle:
            await turn()
        served.catalog.is_draining = True
        served.router.drain()
        assert (await served.refused("Step", step("a"))).reason == "DRAINING"
        assert not served.engines[0].is_idle
        await timer.fire()
        found = await asyncio.gather(*calls)
        assert [one.step_index for one in found] == [0, 0]
        assert served.engines[0].is_idle

    async def test_a_call_cancelled_while_delayed_withdraws_its_step(self, timer):
        """Its session has not moved, and the call delayed with it is answered."""
        served = Served(max_hold_seconds=pacer.TICK_SECONDS)
        await served.open("a", "b")
        going, staying = (asyncio.create_task(served.ask("Step", step(name))) for name in "ab")
        while served.engines[0].is_idle:
            await turn()
        await turn()
        going.cancel()
        await turn()
        await timer.fire()
        assert (await staying).step_index == 0
        with pytest.raises(asyncio.CancelledError):
            await going
        found = await served.ask("GetSession", pb.GetSessionRequest(session_id="a"))
        assert found.session.next_step_index == 0
        assert served.errors == []


class TestPrime:
    """A session's history."""

    async def test_a_prime_leaves_the_session_where_single_steps_would(self, served):
        """The answer is the last prediction; steps go on from there; a call sent again moves nothing."""
        await served.open("s")
        found = await served.ask(
            "Prime", pb.PrimeRequest(session_id="s", x_raw=X[:30].tobytes(), step_index=0)
        )
        wanted = Alone(fakes.recurrence()).fold(X)
        assert (found.step_index, bits(found.y)) == (29, wanted[29 * 8 : 30 * 8])
        assert (
            await served.ask("Prime", pb.PrimeRequest(session_id="s", x=X[:30].ravel(), step_index=0))
            == found
        )
        on = await served.ask("Prime", pb.PrimeRequest(session_id="s", x=X[28:].ravel(), step_index=28))
        assert (on.step_index, bits(on.y)) == (39, wanted[-8:])

    async def test_a_prime_that_fails_has_the_number_of_steps_applied(self, served):
        """The number is in the metadata, beside the reason."""
        await served.open("s")
        x = X[:10].copy()
        x[6:8] = [3e38, 0]
        found = await served.refused("Prime", pb.PrimeRequest(session_id="s", x=x.ravel()))
        assert (found.reason, found.metadata) == ("INVALID_ARGUMENT", {"field": "x_raw", "num_applied": "4"})
        stands = await served.ask("GetSession", pb.GetSessionRequest(session_id="s"))
        assert stands.session.next_step_index == 4

    async def test_a_prime_of_too_many_steps_is_refused(self):
        """The error has the bound, and nothing is applied."""
        served = Served(max_message_steps=3)
        await served.open("s")
        found = await served.refused("Prime", pb.PrimeRequest(session_id="s", x=[0] * 8))
        assert (found.reason, found.metadata) == ("TOO_MANY_STEPS", {"max_message_steps": "3"})


class TestForecast:
    """Many steps ahead."""

    async def test_a_forecast_looks_ahead_and_moves_nothing(self):
        """Row after row, from the session's position after every earlier request."""
        model = fakes.recurrence(num_future=1)
        served = Served(model)
        await served.open("s")
        request = pb.ForecastRequest(session_id="s", horizon_steps=3, future=[1, 2, 3])
        assert (await served.refused("Forecast", request)).metadata == {"field": "session_id"}
        _, found = await asyncio.gather(served.ask("Step", step()), served.ask("Forecast", request))
        assert found.next_step_index == 1
        assert len(found.y) == 6
        assert found.y[0] == pytest.approx(1 * 0.7 + 1)
        assert await served.ask("Forecast", request) == found
        request.future.pop()
        assert (await served.refused("Forecast", request)).metadata == {"field": "future"}

    async def test_a_forecast_beyond_the_bound_is_refused(self):
        """The server's bound holds, not the default."""
        served = Served(max_horizon_steps=5)
        await served.open("s")
        found = await served.refused("Forecast", pb.ForecastRequest(session_id="s", horizon_steps=6))
        assert found.metadata == {"field": "horizon_steps"}
