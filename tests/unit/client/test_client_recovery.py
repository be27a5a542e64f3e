"""Sessions that outlive their server: lost steps are sent again, and the caller sees one sequence."""

import asyncio

import pytest
import streamcell
from driving import cancel_once, until_none, values
from fake_store import FakeStore
from fake_streamcell import (
    SECOND_NS,
    FakeServer,
    FakeSession,
    Gate,
    at_step,
    at_steps,
    broken,
    expected,
    fenced,
    once,
    store_unavailable,
)
from streamcell import Limits
from streamcell.v1 import streamcell_pb2 as pb

ROWS = [[float(value)] for value in range(1, 31)]
LAGS = [0, 1, 5, 12, None]


@pytest.fixture
async def server():
    """A fake server with a store that is up to date, until a test says otherwise."""
    fake = FakeServer(FakeStore())
    await fake.start()
    yield fake
    await fake.stop()


def lineage(server, session_id="mine"):
    """Returns the inputs that were applied to the session in the end."""
    return [x for x, _, _ in server.sessions[session_id].applied]


def fail_at(server, moment, hook):
    """Sets a hook before or after each step is applied."""
    setattr(server, moment, hook)


def streamcell_fault(reason):
    """A NOT_FOUND with this reason."""
    fault = fenced()
    fault.code, fault.reason = "NOT_FOUND", reason
    return fault


async def step_each(session):
    """Each row by a call of its own."""
    return [(await session.step(row)).y[0] for row in ROWS]


async def prime_then_step(session):
    """A history in pieces, then single steps."""
    primed = (await session.prime(ROWS[:20])).y[0]
    return [primed, *[(await session.step(row)).y[0] for row in ROWS[20:]]]


async def stream(session):
    """All rows in a stream."""
    return await values(session.stream(ROWS))


def fence_at(server, indexes):
    """A hook that lets another server take the session over, quietly."""
    left = list(indexes)

    async def hook(request):
        if request.step_index in left:
            left.remove(request.step_index)
            server.fence(request.session_id)

    return hook


def fault_at(indexes, fault):
    """A hook that refuses each of these steps once."""
    left = list(indexes)

    async def hook(request):
        if request.step_index in left:
            left.remove(request.step_index)
            raise fault()

    return hook


async def reset(session, server, outcome):
    """Resets a session, or has it reset without an answer."""
    if outcome == "answered":
        await session.reset()
        return
    arrived = asyncio.Event()

    async def reset_without_answer(request):
        server.sessions["mine"].applied.clear()
        server.sessions["mine"].num_durable_steps = 0
        server.before_call["ResetSession"] = once()
        arrived.set()
        await asyncio.Event().wait()

    server.before_call["ResetSession"] = reset_without_answer
    await cancel_once(arrived, session.reset())


class TestCrash:
    """A server that crashed gets the steps that it lost."""

    @pytest.mark.parametrize("lag", LAGS)
    @pytest.mark.parametrize("moment", ["before", "after"])
    async def test_a_crash_at_any_point_of_a_stream_is_not_seen(self, client, server, lag, moment):
        """However far the store lags, there is one prediction for each row, and each was applied once."""
        server.store.lag_steps = lag
        for index in range(0, 30, 3):
            fail_at(server, moment, at_steps([index], server.crash))
            async with client.session(session_id="mine") as session:
                assert await values(session.stream(ROWS)) == expected(ROWS)
                assert lineage(server) == ROWS

    async def test_only_what_was_lost_is_sent_again_and_by_prime(self, client, server):
        """Prime sends the steps from the store's last to the last one answered; the stream goes on there."""
        server.store.lag_steps = 5
        server.before = at_steps([20], server.crash)
        async with client.session(session_id="mine") as session:
            rows = [(number * SECOND_NS, row) for number, row in enumerate(ROWS)]
            assert await values(session.stream(rows)) == expected(ROWS)
            times = [time_ns for _, time_ns, _ in server.sessions["mine"].applied]
            assert times == [number * SECOND_NS for number in range(30)]
        (prime,) = server.named("Prime")
        assert prime.step_index == 15
        assert len(prime.x_raw) // 4 <= 5  # up to the last one answered, and no further

    @pytest.mark.parametrize("lag", [7, None])
    async def test_a_resend_interrupted_anywhere_goes_on(self, connect, server, lag):
        """Crashes while lost steps are sent again cost another round, and nothing is applied twice."""
        server.store.lag_steps = lag
        for index in range(21):
            server.before = at_steps([20, index, index], server.crash)
            async with (
                connect(limits=Limits(message_steps=3)) as client,
                client.session(session_id="mine") as session,
            ):
                assert await values(session.stream(ROWS)) == expected(ROWS)
                assert lineage(server) == ROWS

    async def test_a_resend_that_never_succeeds_ends_by_the_policy(self, client, server):
        """Progress of the resend alone does not renew the budget; the error is the last one."""
        server.store.lag_steps = None
        server.before = at_steps([20] + [3] * 10, server.crash)
        async with client.session(session_id="mine") as session:
            with pytest.raises(streamcell.ConnectionLost):
                await values(session.stream(ROWS))
            server.before = once()
            # The next call takes up where it was left: nothing that was answered is lost.
            reply = await session.step([0.0])
            assert reply.y[0] == expected([*ROWS[: reply.step_index], [0.0]])[-1]

    @pytest.mark.parametrize("drive", [step_each, prime_then_step, stream])
    @pytest.mark.parametrize("event", ["crash", "fence", "fault", "store"])
    @pytest.mark.parametrize("lag", [0, 4, None])
    async def test_calls_of_every_kind_survive(self, connect, server, drive, event, lag):
        """The caller does not see a crash, another owner, a fenced write or a store that is away."""
        server.store.lag_steps = lag
        indexes = [0, 3, 4, 11, 19, 20, 29]
        if event == "crash":
            server.before = at_steps(indexes, server.crash)
        elif event == "fence":
            server.before = fence_at(server, indexes)
        else:
            server.before = fault_at(indexes, fenced if event == "fault" else store_unavailable)
        async with (
            connect(limits=Limits(message_steps=8)) as client,
            client.session(session_id="mine") as session,
        ):
            got = await drive(session)
            assert got == expected(ROWS)[-len(got) :]
            assert lineage(server) == ROWS

    async def test_a_server_process_that_is_replaced_is_found_again(self, client, server):
        """The connection is lost, and the next process on the port has what the store has."""
        server.store.lag_steps = 3
        async with client.session(session_id="mine") as session:
            for number, row in enumerate(ROWS[:9]):
                if number % 3 == 2:
                    await server.stop()
                    server.crash()
                    await server.start()
                assert (await session.step(row)).y[0] == expected(ROWS[: number + 1])[-1]
            assert lineage(server) == ROWS[:9]


class TestTail:
    """The tail bounds what can be sent again."""

    @pytest.mark.parametrize("store", [FakeStore(lag_steps=10), None])
    async def test_a_loss_beyond_the_tail_is_an_error(self, connect, server, store):
        """Steps that the tail no longer has cannot be sent again: a gap, or a session that is gone."""
        server.store = store
        server.before = at_steps([20], server.crash)
        kind = streamcell.StepGap if store else streamcell.SessionNotFound
        async with (
            connect(limits=Limits(tail_steps=5)) as client,
            client.session(session_id="mine") as session,
        ):
            with pytest.raises(kind):
                await values(session.stream(ROWS))
        assert server.named("Prime") == []

    async def test_durable_steps_are_not_remembered(self, connect, server):
        """With a store that lags little, a short tail is enough for ever."""
        server.store.lag_steps = 2
        server.after = at_steps([9, 19, 29], server.crash)
        async with (
            connect(limits=Limits(tail_steps=11)) as client,
            client.session(session_id="mine") as session,
        ):
            assert await values(session.stream(ROWS)) == expected(ROWS)
            assert session._calls.position.tail.first_step_index == 28

    async def test_a_refused_step_is_not_remembered(self, client, server):
        """A step that the server refused is not sent again after a crash."""
        server.store.lag_steps = None
        async with client.session(session_id="mine") as session:
            await session.step([1.0])
            with pytest.raises(streamcell.InvalidArgument):
                await session.step([float("nan")])
            await session.step([2.0])
            server.crash()
            assert (await session.step([3.0])).step_index == 2
            assert lineage(server) == [[1.0], [2.0], [3.0]]

    async def test_a_reset_empties_the_tail(self, client, server):
        """Steps before the reset are never sent again; once the store has the reset, it is not repeated."""
        async with client.session(session_id="mine") as session:
            await values(session.stream(ROWS[:5]))
            await session.reset()
            server.before = at_steps([2], server.crash)
            assert await values(session.stream(ROWS[:4])) == expected(ROWS[:4])
            assert lineage(server) == ROWS[:4]
        assert len(server.named("ResetSession")) == 1


class TestUnknownSession:
    """A server that does not know the session gets all of it, or the caller an error."""

    async def test_a_server_without_a_store_gets_everything_again(self, client, server):
        """A lost session is created again under its id and model, and gets its steps from step 0 on."""
        server.store = None
        server.before = at_steps([10, 20], server.crash)
        async with client.session(session_id="mine", model="tiny") as session:
            assert await values(session.stream(ROWS)) == expected(ROWS)
            assert lineage(server) == ROWS
        creates = [request for request in server.named("OpenSession") if request.mode == pb.OPEN_MODE_CREATE]
        assert [(create.session_id, create.model) for create in creates] == [("mine", "tiny/1")] * 2

    async def test_a_creation_whose_reply_was_lost_is_found(self, client, server):
        """The next attempt resumes the session that the lost attempt created."""
        server.store = None
        num_creates = 0

        async def lose(request):
            nonlocal num_creates
            if request.mode == pb.OPEN_MODE_CREATE:
                num_creates += 1
                server.sessions["mine"] = FakeSession("mine")
                raise broken()

        async with client.session(session_id="mine") as session:
            await session.step([1.0])
            server.before_call["OpenSession"] = lose
            server.before = at_steps([1], server.crash)
            assert (await session.step([1.0])).y == (1.5, 1.0)
        assert num_creates == 1

    @pytest.mark.parametrize("reason", ["SESSION_EXPIRED", "SESSION_EVICTED"])
    async def test_an_expired_session_is_an_error(self, client, server, reason):
        """The caller gets the reason if the server remembers why the session is gone."""
        async with client.session(session_id="mine") as session:
            await session.step([1.0])
            server.before = once(broken())
            server.before_call["OpenSession"] = once(streamcell_fault(reason))
            with pytest.raises(streamcell.SessionGone) as caught:
                await session.step([1.0])
            assert caught.value.reason == reason

    async def test_another_model_under_the_id_is_not_fed(self, client, server):
        """A session of the same id on another model gets nothing of the tail."""
        server.store = None
        async with client.session(session_id="mine") as session:
            await session.step([1.0])
            server.sessions["mine"] = FakeSession("mine", model="other")
            server.before = at_step(1, broken())
            with pytest.raises(streamcell.ModelChanged):
                await session.step([1.0])
        assert server.named("Prime") == []


class TestOwners:
    """Another server or client that takes the session over."""

    async def test_a_fenced_session_is_taken_back(self, client, server):
        """OpenSession takes the session over again; its epoch is above the other owner's."""
        async with client.session(session_id="mine") as session:
            await session.step([1.0])
            server.fence("mine")
            assert (await session.step([1.0])).y == (1.5, 1.0)
            assert (await session.refresh()).epoch == 3

    async def test_two_clients_of_one_session_are_never_two_owners(self, client, connect, server):
        """A new process goes on where the session stands; the earlier one gets an error for its next step."""
        async with client.session(session_id="mine", keep=True) as before:
            await before.step([1.0])
            async with connect() as other, other.session(session_id="mine", mode="resume") as after:
                assert (after.created, after.next_step_index) == (False, 1)
                assert (await after.step([2.0])).step_index == 1
            with pytest.raises(streamcell.StepConflict):
                await before.step([3.0])
            assert (await before.step([3.0])).step_index == 2

    async def test_a_session_taken_over_by_its_id_survives_too(self, client, connect, server):
        """The new process remembers the steps that it sent; the store has the earlier ones."""
        async with client.session(session_id="mine", keep=True) as session:
            await values(session.stream(ROWS[:10]))
        server.store.lag_steps = 3
        server.before = at_steps([15, 25], server.crash)
        async with connect() as other, other.session(session_id="mine", mode="resume") as session:
            assert session.next_step_index == 10
            assert await values(session.stream(ROWS[10:])) == expected(ROWS)[10:]
            assert lineage(server) == ROWS

    async def test_the_end_of_a_session_that_another_server_has_is_quiet(self, client, server):
        """The server that took the session over goes on with it."""
        server.before_call["CloseSession"] = once(fenced())
        async with client.session(session_id="mine") as session:
            await session.step([1.0])
        assert "mine" in server.sessions


class TestReading:
    """A call that changes nothing recovers the session, too."""

    async def test_a_forecast_counts_every_step_that_was_answered(self, client, server):
        """A server that lost steps gets them before it forecasts, whether the connection was lost or not."""
        server.store.lag_steps = None
        async with client.session(session_id="mine") as session:
            await session.step([2.0])
            server.crash()
            assert await session.forecast(1) == ((2.0, 0.0),)
            server.before_call["Forecast"] = once(broken())
            server.crash()
            assert await session.forecast(1) == ((2.0, 0.0),)

    async def test_a_forecast_beside_an_idle_stream_brings_the_session_back(self, client, server):
        """The idle stream then finds the session where it was."""
        server.store.lag_steps = 2
        rows: asyncio.Queue = asyncio.Queue()

        async with client.session(session_id="mine") as session:
            stream = session.stream(until_none(rows))
            for row in ROWS[:5]:
                rows.put_nowait(row)
                await anext(stream)
            server.crash()
            assert await session.forecast(1) == ((expected(ROWS[:5])[-1], 0.0),)
            rows.put_nowait(ROWS[5])
            assert (await anext(stream)).y[0] == expected(ROWS[:6])[-1]
            rows.put_nowait(None)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            assert lineage(server) == ROWS[:6]

    async def test_a_refresh_sends_lost_steps_again(self, client, server):
        """After a crash the server gets the lost steps before it says where the session stands."""
        server.store.lag_steps = 2
        async with client.session(session_id="mine") as session:
            await values(session.stream(ROWS[:10]))
            server.crash()
            assert (await session.refresh()).next_step_index == 10
            assert lineage(server) == ROWS[:10]


class TestUnknownOutcome:
    """A crash after a call whose outcome is unknown."""

    async def test_a_crash_while_the_session_is_in_doubt_loses_nothing(self, client, server):
        """A cancelled step may be lost with the crash; the steps answered before it are not."""
        gate = Gate()

        server.store.lag_steps = None
        async with client.session(session_id="mine") as session:
            await values(session.stream(ROWS[:5]))
            server.after = gate
            await cancel_once(gate.arrived, session.step([100.0]))
            server.after = once()
            server.crash()
            assert (await session.step(ROWS[5])).y[0] == expected(ROWS[:6])[-1]
            assert lineage(server) == ROWS[:6]

    async def test_a_cancelled_step_that_was_applied_is_remembered(self, client, server):
        """Once the server was found to have the step, a crash does not lose it."""
        gate = Gate()

        server.store.lag_steps = None
        async with client.session(session_id="mine") as session:
            await session.step([1.0])
            server.after = gate
            await cancel_once(gate.arrived, session.step([2.0]))
            server.after = once()
            assert (await session.refresh()).next_step_index == 2
            server.crash()
            assert (await session.step([3.0])).y == (expected([[1.0], [2.0], [3.0]])[-1], 2.0)

    @pytest.mark.parametrize("num_after", [0, 3, 8])
    @pytest.mark.parametrize("outcome", ["answered", "cancelled"])
    async def test_a_reset_that_the_store_never_saw_is_not_undone(self, client, server, num_after, outcome):
        """After a crash the store has the steps before the reset: the reset is repeated first."""
        async with client.session(session_id="mine") as session:
            await values(session.stream(ROWS[:5]))
            server.store.lag_steps = None
            await reset(session, server, outcome)
            server.before = at_steps([num_after], server.crash)
            fresh = [[value * 10] for (value,) in ROWS[: num_after + 1]]
            assert await values(session.stream(fresh)) == expected(fresh)
            assert lineage(server) == fresh
