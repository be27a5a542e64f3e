"""Sessions: how they are opened, stepped and closed, and what happens when a call fails."""

import asyncio
import datetime

import numpy as np
import pytest
import streamcell
from driving import cancel_once
from fake_streamcell import (
    SECOND_NS,
    FakeSession,
    Gate,
    at_step,
    broken,
    draining,
    expected,
    once,
    overloaded,
)
from streamcell import Limits
from streamcell.v1 import streamcell_pb2 as pb


class TestStep:
    """Steps are numbered, timed and applied in order."""

    async def test_a_session_steps_and_numbers_itself(self, client, server):
        """Each step gets the next index and a prediction of the state so far."""
        async with client.session(model="tiny") as session:
            assert session.created
            assert (session.model_name, session.model_version) == ("tiny", "1")
            replies = [await session.step([value]) for value in (1.0, 2.0, 3.0)]
            assert session.next_step_index == 3
        assert [reply.step_index for reply in replies] == [0, 1, 2]
        assert [reply.y[0] for reply in replies] == expected([[1.0], [2.0], [3.0]])

    async def test_times_go_out_as_unix_nanoseconds(self, client, server):
        """An aware datetime and whole nanoseconds mean the same; an absent time stays absent."""
        moment = datetime.datetime(1970, 1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
        async with client.session() as session:
            await session.step([1.0], time=moment)
            await session.step([1.0], time=60 * SECOND_NS)
            await session.step([1.0])
        steps = server.named("Step")
        assert [step.time_ns for step in steps] == [0, 60 * SECOND_NS, 0]
        assert [step.HasField("time_ns") for step in steps] == [True, True, False]

    async def test_a_refused_argument_sends_nothing(self, client, server):
        """A naive time or a row of text fails before the session moves, and leaves it usable."""
        async with client.session() as session:
            with pytest.raises(streamcell.InvalidArgument, match="no time zone"):
                await session.step([1.0], time=datetime.datetime(2026, 1, 1))
            with pytest.raises(streamcell.InvalidArgument, match="sequence of numbers"):
                await session.step(["1"])
            assert server.named("Step") == []
            assert (await session.step([1.0])).step_index == 0

    async def test_concurrent_steps_keep_call_order(self, client, server):
        """Steps awaited together get their numbers in the order of the calls."""
        async with client.session() as session:
            replies = await asyncio.gather(*(session.step([float(value)]) for value in range(20)))
        assert [reply.step_index for reply in replies] == list(range(20))
        assert [reply.y[0] for reply in replies] == pytest.approx(expected([[v] for v in range(20)]))

    async def test_step_0_names_the_model(self, client, server):
        """Only step 0 can open a session, so only step 0 names the model."""
        async with client.session() as session:
            await session.step([1.0])
            await session.step([1.0])
        assert [step.model for step in server.named("Step")] == ["tiny/1", ""]


class TestLife:
    """A session is opened, found, left or closed by its block."""

    async def test_a_session_created_here_is_closed_at_the_end(self, client, server):
        """The end of the `async with` closes the session that it opened."""
        async with client.session() as session:
            assert session.session_id in server.sessions
        assert server.sessions == {}

    async def test_a_session_found_or_kept_is_left(self, client, server):
        """A session that was found, or opened with `keep`, stays on the server with its steps."""
        async with client.session(session_id="mine", keep=True) as session:
            await session.step([1.0])
        async with client.session(session_id="mine") as session:
            assert not session.created
            assert (await session.step([1.0])).step_index == 1
        assert len(server.sessions["mine"].applied) == 2

    async def test_create_and_resume_refuse_the_other_case(self, client, server):
        """Create refuses an id that is in use, resume an id that is not."""
        async with client.session(session_id="mine", keep=True):
            pass
        with pytest.raises(streamcell.SessionExists):
            async with client.session(session_id="mine", mode="create"):
                pass
        with pytest.raises(streamcell.SessionNotFound):
            async with client.session(session_id="other", mode="resume"):
                pass
        with pytest.raises(streamcell.InvalidArgument, match="mode"):
            client.session(mode="perhaps")
        with pytest.raises(streamcell.InvalidArgument, match="session_id"):
            client.session(mode="resume")

    async def test_a_session_is_used_inside_its_block_only(self, client, connect):
        """Before and after, every use is NotOpen; a second entry is Misuse."""
        session = client.session()
        with pytest.raises(streamcell.NotOpen):
            await session.step([1.0])
        async with session:
            pass
        with pytest.raises(streamcell.NotOpen):
            session.stream([])
        with pytest.raises(streamcell.Misuse):
            await session.__aenter__()
        with pytest.raises(streamcell.NotOpen):
            await connect().models()

    async def test_a_session_does_not_outlive_its_client(self, connect, server):
        """Once the client is closed, its sessions' calls and streams are NotOpen."""
        async with connect() as client:
            session = await client.session(keep=True).__aenter__()
        with pytest.raises(streamcell.NotOpen, match="client is closed"):
            await session.step([1.0])
        with pytest.raises(streamcell.NotOpen, match="client is closed"):
            await anext(session.stream([[1.0]]))

    async def test_the_body_s_error_is_not_hidden_by_the_close(self, client, server):
        """If both the body and the close fail, the caller gets the body's error."""

        async def refuse(request):
            raise draining()

        server.before_call["CloseSession"] = refuse
        with pytest.raises(ZeroDivisionError):
            async with client.session():
                raise ZeroDivisionError


class TestRepeatedOpening:
    """An opening is repeated only where a repetition cannot open or meet another session."""

    async def test_an_open_without_an_id_is_repeated_under_one_id(self, client, server):
        """The client makes the id, so that a lost reply leaves no second session behind."""

        async def lose_the_reply(request):
            server.sessions[request.session_id] = FakeSession(request.session_id)
            server.before_call["OpenSession"] = once()
            raise broken()

        server.before_call["OpenSession"] = lose_the_reply
        async with client.session() as session:
            assert session.created
            assert list(server.sessions) == [session.session_id]
        assert server.sessions == {}
        first, second = server.named("OpenSession")
        assert first.session_id == second.session_id

    async def test_creating_an_id_is_not_repeated_after_a_lost_connection(self, client, server):
        """A repetition could meet the session that the lost call opened; a refused call is repeated."""
        server.before_call["OpenSession"] = once(broken())
        with pytest.raises(streamcell.ConnectionLost):
            async with client.session(session_id="mine", mode="create"):
                pass
        server.before_call["OpenSession"] = once(draining())
        async with client.session(session_id="mine", mode="create") as session:
            assert session.created

    async def test_an_open_with_an_id_is_repeated(self, client, server):
        """Finding or creating a session by its id is safe to repeat."""
        server.before_call["OpenSession"] = once(draining(), draining())
        async with client.session(session_id="mine") as session:
            assert session.created


class TestRepeatedStep:
    """A step that failed is sent again, is applied once, and never meets another session."""

    @pytest.mark.parametrize("fault", [broken, draining, lambda: overloaded(0.25)])
    async def test_a_step_is_repeated_under_its_index_after_a_passing_error(
        self, client, server, fake_time, fault
    ):
        """The step is applied once; before the repetition the session is resumed."""
        async with client.session() as session:
            await session.step([1.0])
            server.before = at_step(1, fault(), fault())
            reply = await session.step([2.0])
            assert reply.step_index == 1
            assert reply.y[0] == 2.5
        assert [step.step_index for step in server.named("Step")] == [0, 1, 1, 1]
        assert len(server.named("OpenSession")) == 3
        assert len(fake_time.sleeps) == 2

    async def test_overloaded_waits_for_the_server_s_delay(self, client, server, fake_time):
        """The retry delay comes before the next attempt, with the jitter on top."""
        async with client.session() as session:
            server.before = once(overloaded(0.25))
            await session.step([1.0])
        assert fake_time.sleeps == [pytest.approx(0.251)]

    async def test_a_step_applied_but_unanswered_is_not_applied_again(self, client, server):
        """A step whose reply was lost with the connection is sent again, and is applied once."""
        async with client.session() as session:
            server.after = at_step(0, broken())
            reply = await session.step([1.0])
            assert reply.y == (1.0, 0.0)
            assert (await session.step([1.0])).y == (1.5, 1.0)
        assert [index for _, index in server.applied] == [0, 1]

    async def test_a_lost_session_without_its_first_steps_is_never_started_again(self, client, server):
        """A session found in its middle cannot be brought back: no further step goes out under its id."""
        server.sessions["mine"] = FakeSession("mine", applied=[([1.0], None, (1.0, 0.0))])
        async with client.session(session_id="mine") as session:
            await session.step([1.0])

            async def crash(request):
                server.crash()
                server.before = once()
                raise broken()

            server.before = crash
            with pytest.raises(streamcell.SessionNotFound):
                await session.step([2.0])
            with pytest.raises(streamcell.SessionNotFound):
                await session.step([3.0])
        assert [step.step_index for step in server.named("Step")] == [1, 2]
        assert server.sessions == {}

    async def test_the_first_step_does_not_open_a_session_that_was_lost(self, client, server):
        """Step 0 alone would open a session with other settings; a repetition opens the session first."""
        async with client.session(session_id="mine", durable=True) as session:

            async def crash(request):
                server.crash()
                server.before = once()
                raise broken()

            server.before = crash
            assert (await session.step([2.0])).y == (2.0, 0.0)
            assert server.sessions["mine"].durable
        _, resume, create = server.named("OpenSession")
        assert (resume.mode, create.mode) == (pb.OPEN_MODE_RESUME, pb.OPEN_MODE_CREATE)
        assert (create.session_id, create.model, create.durable) == ("mine", "tiny/1", True)

    async def test_steps_lost_beyond_the_tail_are_a_gap_until_refreshed(self, connect, server):
        """Lost steps that the tail no longer has are an error; refresh goes on from the server's step."""
        async with (
            connect(limits=Limits(tail_steps=1)) as client,
            client.session(session_id="mine") as session,
        ):
            for value in (1.0, 2.0, 3.0):
                await session.step([value])
            del server.sessions["mine"].applied[1:]
            server.before = once(broken())
            with pytest.raises(streamcell.StepGap, match="only steps from 3 on") as caught:
                await session.step([4.0])
            assert caught.value.expected_step_index == 1
            with pytest.raises(streamcell.StepGap):
                await session.step([4.0])
            assert (await session.refresh()).next_step_index == 1
            assert (await session.step([4.0])).y == (4.5, 1.0)

    async def test_another_model_under_the_id_is_an_error(self, client, server):
        """A session of the same id on another model is not stepped."""
        async with client.session(session_id="mine") as session:
            server.sessions["mine"].model = "other"
            server.before = once(broken())
            with pytest.raises(streamcell.ModelChanged):
                await session.step([1.0])

    async def test_attempts_end_by_the_policy(self, client, server, fake_time):
        """After the policy's attempts the caller gets the last error; the next call asks the server first."""

        async def refuse(request):
            raise draining()

        async with client.session() as session:
            server.before = refuse
            with pytest.raises(streamcell.Draining):
                await session.step([1.0])
            assert len(server.named("Step")) == 4
            server.before = once()
            assert (await session.step([1.0])).step_index == 0
            assert len(server.named("GetSession")) == 1

    async def test_a_server_that_is_down_is_connection_lost(self, server, connect, fake_time):
        """Without a server, retries end with ConnectionLost."""
        timeout = streamcell.Timeout(connect_seconds=0.5)  # also for the connection that is there at first
        retry = streamcell.RetryPolicy(max_attempts=2, initial_delay_seconds=0.001)
        async with connect(timeout=timeout, retry=retry) as client, client.session() as session:
            await server.stop()
            with pytest.raises(streamcell.ConnectionLost):
                await session.step([1.0])


class TestUnknownOutcome:
    """After a cancelled call or a deadline the next call asks where the session stands."""

    async def test_a_cancelled_step_leaves_the_session_usable(self, client, server):
        """The next step asks whether the cancelled step was applied, and gets the number after it."""
        gate = Gate()

        async with client.session() as session:
            await session.step([1.0])
            server.after = gate  # applied, but its reply never comes
            await cancel_once(gate.arrived, session.step([2.0]))
            server.after = once()
            reply = await session.step([4.0])
            assert reply.step_index == 2
            assert reply.y[0] == expected([[1.0], [2.0], [4.0]])[-1]

    async def test_a_cancelled_step_that_was_not_applied_is_not_counted(self, client, server):
        """A step withdrawn before it was applied leaves its number to the next."""
        gate = Gate()

        async with client.session() as session:
            server.before = gate
            await cancel_once(gate.arrived, session.step([2.0]))
            server.before = once()
            assert (await session.step([4.0])).y == (4.0, 0.0)

    async def test_a_deadline_leaves_the_outcome_to_the_next_call(self, connect, server):
        """A step that met its deadline is DeadlineExceeded, is not repeated, and is found applied."""
        async with connect() as client, client.session() as session:
            server.after = Gate()
            connection, timeout = session._connection, session._connection.timeout
            connection.timeout = streamcell.Timeout(call_seconds=0.2)  # for the step alone
            with pytest.raises(streamcell.DeadlineExceeded):
                await session.step([1.0])
            connection.timeout = timeout
            server.after = once()
            assert len(server.named("Step")) == 1
            assert (await session.step([1.0])).step_index == 1

    async def test_a_step_waiting_its_turn_can_be_cancelled(self, client, server):
        """Cancelling a call that waits for an earlier one sends nothing and raises no doubt."""
        gate = Gate()
        async with client.session() as session:
            server.before = gate
            first = asyncio.create_task(session.step([1.0]))
            second = asyncio.create_task(session.step([2.0]))
            await asyncio.sleep(0)
            second.cancel()
            gate.open()
            assert (await first).step_index == 0
            with pytest.raises(asyncio.CancelledError):
                await second
            assert (await session.step([3.0])).step_index == 1
            assert server.named("GetSession") == []

    async def test_a_reset_of_unknown_outcome_leaves_the_session_usable(self, client, server):
        """A reset that was applied and cancelled does not count as lost steps: the next step is 0."""
        arrived = asyncio.Event()

        async def reset_without_answer(request):
            server.sessions[request.session_id] = FakeSession(request.session_id)
            arrived.set()
            await asyncio.Event().wait()

        async with client.session() as session:
            await session.step([2.0])
            server.before_call["ResetSession"] = reset_without_answer
            await cancel_once(arrived, session.reset())
            assert (await session.step([3.0])).y == (3.0, 0.0)


class TestPrime:
    """A history goes out in pieces that fit the messages."""

    async def test_prime_is_cut_into_pieces_with_running_indexes(self, connect, server):
        """A history beyond the bound goes out in pieces, each with the index of its first step."""
        rows = [[float(value)] for value in range(10)]
        times = [value * SECOND_NS for value in range(10)]
        async with connect(limits=Limits(message_steps=4)) as client, client.session() as session:
            prediction = await session.prime(rows, times)
            assert session.next_step_index == 10
            assert prediction.step_index == 9
            assert prediction.y[0] == pytest.approx(expected(rows)[-1])
            assert [time_ns for _, time_ns, _ in server.sessions[session.session_id].applied] == times
        primes = server.named("Prime")
        assert [len(prime.x_raw) // 4 for prime in primes] == [4, 4, 2]
        assert [prime.step_index for prime in primes] == [0, 4, 8]

    async def test_prime_obeys_the_bound_in_bytes(self, connect, server):
        """Pieces fit the message size, however wide a row is."""
        server.inputs = tuple(f"x{number}" for number in range(64))
        rows = np.ones((100, 64), np.float32)
        async with connect(limits=Limits(message_bytes=4096)) as client, client.session() as session:
            await session.prime(rows)
            assert session.next_step_index == 100
        assert max(prime.ByteSize() for prime in server.named("Prime")) <= 4096

    async def test_prime_halves_its_pieces_for_a_stricter_server(self, client, server):
        """TOO_MANY_STEPS makes the pieces smaller instead of failing."""
        server.max_message_steps = 3
        async with client.session() as session:
            await session.prime([[1.0]] * 20)
            assert session.next_step_index == 20

    async def test_prime_survives_a_broken_connection(self, connect, server):
        """A piece whose reply was lost is repeated under its index and applied once."""
        rows = [[float(value)] for value in range(10)]
        async with connect(limits=Limits(message_steps=4)) as client, client.session() as session:
            server.after = at_step(5, broken())
            prediction = await session.prime(rows)
            assert prediction.y[0] == pytest.approx(expected(rows)[-1])
        assert [index for _, index in server.applied] == list(range(10))

    async def test_prime_takes_arrays(self, client, server):
        """Arrays of any number type are read by the buffer protocol; the refusal names wrong shapes."""
        async with client.session() as session:
            await session.prime(np.arange(3, dtype=np.float64).reshape(3, 1), np.arange(3))
            with pytest.raises(streamcell.InvalidArgument, match=r"rows\[0\]"):
                await session.prime(np.arange(3.0))
            with pytest.raises(streamcell.InvalidArgument, match="2 times for 3 rows"):
                await session.prime([[1.0]] * 3, [1, 2])
            with pytest.raises(streamcell.InvalidArgument, match="at least one row"):
                await session.prime([])
            assert session.next_step_index == 3


class TestForecastAndReset:
    """A forecast changes nothing, a reset forgets everything."""

    async def test_a_forecast_gives_rows_and_changes_nothing(self, client, server):
        """A forecast has one row of outputs for each step ahead."""
        async with client.session() as session:
            await session.step([2.0])
            assert await session.forecast(3) == ((2.0, 0.0), (2.0, 1.0), (2.0, 2.0))
            assert session.next_step_index == 1

    async def test_reset_goes_back_to_step_0(self, client, server):
        """After a reset the next step is 0, also when the reset had to be repeated."""
        async with client.session() as session:
            await session.step([2.0])
            server.before_call["ResetSession"] = once(broken())
            await session.reset()
            assert (await session.step([3.0])).y == (3.0, 0.0)


class TestModels:
    """The client lists the models."""

    async def test_models_are_listed(self, client):
        """Models come as values."""
        (model,) = await client.models()
        assert (model.name, model.version) == ("tiny", "1")
        assert [variable.name for variable in model.outputs] == ["h", "index"]
        assert not model.retiring

    async def test_listing_models_is_repeated(self, client, server):
        """The caller does not see that ListModels was UNAVAILABLE."""
        server.before_call["ListModels"] = once(broken(), draining())
        assert len(await client.models()) == 1
        assert len(server.named("ListModels")) == 3
