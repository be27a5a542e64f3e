"""Streams: order, the window, reconnection, interruption."""

import asyncio

import numpy as np
import pytest
import streamcell
from driving import cancel_once, until_none, values
from fake_streamcell import FakeSession, Gate, at_step, broken, draining, expected, overloaded
from streamcell import Limits

ROWS = [[float(value)] for value in range(50)]


async def until_error(stream, kind):
    """The indexes of a stream's predictions, and the error that ended it."""
    indexes = []
    try:
        async for reply in stream:
            indexes.append(reply.step_index)  # noqa: PERF401 - what came before the error counts
    except kind as error:
        return indexes, error
    raise AssertionError(f"no {kind.__name__}")


def at_step_each(fault):
    """A hook that fails every step once."""
    seen = set()

    async def hook(request):
        if request.step_index not in seen:
            seen.add(request.step_index)
            raise fault()

    return hook


class TestReplies:
    """Every row has its prediction, in order."""

    async def test_replies_come_in_order_one_for_each_row(self, client, server):
        """A list of rows gives as many predictions, over one bidirectional stream."""
        async with client.session() as session:
            assert await values(session.stream(ROWS)) == pytest.approx(expected(ROWS))
            assert session.next_step_index == 50
        assert server.num_streams == 1
        assert server.named("GetSession") == []

    @pytest.mark.parametrize("form", ["asynchronous", "timed", "array"])
    async def test_rows_may_come_in_any_form(self, client, server, form):
        """Asynchronous rows, pairs of time and row, and arrays are rows."""

        async def slowly():
            for row in ROWS:
                await asyncio.sleep(0)
                yield row

        rows = {
            "asynchronous": slowly(),
            "timed": [(number, tuple(row)) for number, row in enumerate(ROWS)],
            "array": np.array(ROWS),
        }[form]
        async with client.session() as session:
            assert await values(session.stream(rows)) == pytest.approx(expected(ROWS))
            times = [time_ns for _, time_ns, _ in server.sessions[session.session_id].applied]
        assert times == (list(range(50)) if form == "timed" else [None] * 50)

    async def test_a_pair_of_numbers_is_a_row(self, client, server):
        """A tuple of two numbers is a row of two values, not a time and a row."""
        async with client.session() as session:
            assert await values(session.stream([(1.0, 2.0)])) == [3.0]

    async def test_no_rows_give_no_replies(self, client, server):
        """An empty stream ends at once and calls nothing."""
        async with client.session() as session:
            assert await values(session.stream([])) == []
        assert server.num_streams == 0

    async def test_a_stream_goes_on_where_the_session_stands(self, client, server):
        """Steps, streams and further steps share one sequence of numbers."""
        async with client.session() as session:
            await session.step([1.0])
            assert len(await values(session.stream(ROWS[:3]))) == 3
            assert (await session.step([1.0])).step_index == 4
            assert len(await values(session.stream(ROWS[:3]))) == 3

    async def test_a_reply_comes_without_waiting_for_the_next_row(self, client, server):
        """A live source gets each row's prediction before it produces another one."""
        rows: asyncio.Queue = asyncio.Queue()

        async with client.session() as session:
            stream = session.stream(until_none(rows))
            for value in range(5):
                rows.put_nowait([float(value)])
                reply = await anext(stream)
                assert reply.step_index == value
            rows.put_nowait(None)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)


class TestWindow:
    """The window bounds the rows that are taken ahead."""

    async def test_the_window_bounds_what_a_slow_server_is_sent(self, connect, server):
        """Rows are taken and sent up to the window, and no further until a reply comes."""
        permits = asyncio.Semaphore(0)
        full = asyncio.Event()
        taken = 0

        async def wait_for_permit(request):
            await permits.acquire()

        def rows():
            nonlocal taken
            for row in ROWS:
                taken += 1
                if taken == 4:
                    full.set()
                yield row

        server.before = wait_for_permit
        async with connect(limits=Limits(window_steps=4)) as client, client.session() as session:
            stream = session.stream(rows())
            first = asyncio.create_task(anext(stream))
            await full.wait()
            await server.until(lambda: len(server.arrived) >= 4)
            await client.models()  # a whole round trip, in which nothing more may be taken
            assert taken == 4
            assert server.arrived == [0, 1, 2, 3]
            permits.release()
            await first
            for _ in range(len(ROWS)):
                permits.release()
            assert len([reply async for reply in stream]) == 49

    async def test_a_slow_consumer_holds_back_the_source(self, connect, server):
        """Predictions not yet taken count in the window too."""
        taken = 0

        def rows():
            nonlocal taken
            for row in ROWS:
                taken += 1
                yield row

        async with connect(limits=Limits(window_steps=3)) as client, client.session() as session:
            stream = session.stream(rows())
            await anext(stream)
            await server.until(lambda: len(server.applied) >= 4)
            await client.models()  # a whole round trip, in which nothing more may be taken
            assert taken <= 4
            assert len(server.applied) == 4
            assert len([reply async for reply in stream]) == 49


class TestBrokenCall:
    """A stream goes on after its call broke."""

    @pytest.mark.parametrize("lost", ["the request", "the reply"])
    @pytest.mark.parametrize("fault", [broken, draining, lambda: overloaded(0.25)])
    async def test_a_broken_stream_goes_on_unbroken(self, client, server, fake_time, fault, lost):
        """After each break the unanswered steps are sent again; every step is applied once, in order."""
        hook = at_step(20, fault(), fault())
        if lost == "the request":
            server.before = hook
        else:
            server.after = hook
        async with client.session() as session:
            assert await values(session.stream(ROWS)) == pytest.approx(expected(ROWS))
            resumes = server.named("OpenSession")[1:]
            assert [request.session_id for request in resumes] == [session.session_id] * 2
        assert [index for _, index in server.applied] == list(range(50))
        assert server.num_streams == 3
        assert len(fake_time.sleeps) == 2
        assert max(fake_time.sleeps) >= (0.25 if fault is not broken and fault is not draining else 0)

    async def test_only_unanswered_steps_are_sent_again(self, connect, server):
        """Steps that were answered before the break do not go out a second time."""
        server.after = at_step(20, broken())
        async with connect(limits=Limits(window_steps=4)) as client, client.session() as session:
            await values(session.stream(ROWS))
        again = [index for index in set(server.arrived) if server.arrived.count(index) > 1]
        assert 20 in again
        assert set(again) <= {20, 21, 22, 23}

    async def test_a_break_on_every_step_is_survived(self, client, server):
        """Attempts count from zero after each reply, so a stream outlives any number of breaks."""
        server.after = at_step_each(broken)
        async with client.session() as session:
            assert await values(session.stream(ROWS)) == pytest.approx(expected(ROWS))
        assert [index for _, index in server.applied] == list(range(50))

    async def test_a_restarted_server_with_its_sessions_is_found_again(self, client, server, fake_time):
        """The server stops and starts again on the same port; the sequence has no gap."""

        async def restart():
            await server.stop()
            await server.start()

        rows: asyncio.Queue = asyncio.Queue()

        async with client.session() as session:
            stream = session.stream(until_none(rows))
            rows.put_nowait([1.0])
            assert (await anext(stream)).step_index == 0
            await restart()
            rows.put_nowait([2.0])
            reply = await anext(stream)
            assert reply.y == (2.5, 1.0)
            rows.put_nowait(None)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    async def test_an_idle_stream_does_not_ask_a_server_that_is_away(
        self, client, connect, server, fake_time
    ):
        """A broken stream without unanswered steps waits for its next row before it connects again."""
        rows: asyncio.Queue = asyncio.Queue()

        async with connect() as fresh, client.session(keep=True) as session:
            stream = session.stream(until_none(rows))
            rows.put_nowait([1.0])
            await anext(stream)
            slept = asyncio.Event()

            async def on_sleep():
                slept.set()

            fake_time.on_sleep = on_sleep
            await server.stop()
            waiting = asyncio.create_task(anext(stream))
            await slept.wait()
            await server.start()
            await fresh.models()  # a whole round trip, in which nothing may be tried again
            assert server.num_streams == 1
            assert len(fake_time.sleeps) == 1
            rows.put_nowait(None)
            with pytest.raises(StopAsyncIteration):
                await waiting


class TestErrors:
    """An error is raised in place of the first prediction that is missing."""

    async def test_a_session_lost_under_a_stream_is_an_error(self, client, server):
        """Replies before the loss are delivered, then the error; the session does not start from zero."""
        server.sessions["mine"] = FakeSession("mine", applied=[([1.0], None, (1.0, 0.0))])

        async def crash(request):
            if request.step_index == 20:
                server.crash()
                raise broken()

        server.before = crash
        async with client.session(session_id="mine") as session:
            got, _ = await until_error(session.stream(ROWS), streamcell.SessionNotFound)
        # Replies on their way when the stream broke are lost with the session; those before are not.
        assert got == list(range(1, 1 + len(got)))
        assert 20 - Limits().window_steps < len(got) + 1 <= 20
        assert server.sessions == {}

    async def test_a_session_that_lost_too_many_steps_under_a_stream_is_a_gap(self, connect, server):
        """A server that lacks steps before the tail is an error, which says where the server stands."""

        async def crash(request):
            if request.step_index == 20:
                del server.sessions["mine"].applied[10:]
                raise broken()

        server.before = crash
        async with (
            connect(limits=Limits(tail_steps=5)) as client,
            client.session(session_id="mine") as session,
        ):
            with pytest.raises(streamcell.StepGap) as caught:
                await values(session.stream(ROWS))
        assert caught.value.expected_step_index == 10

    async def test_a_step_refused_by_the_server_ends_the_stream_in_its_place(self, client, server):
        """The rows before are answered, then the error is raised; the session goes on after it."""
        rows = [[1.0], [2.0], [float("nan")], [4.0]]
        async with client.session() as session:
            got, error = await until_error(session.stream(rows), streamcell.InvalidArgument)
            assert error.field == "x"
            assert got == [0, 1]
            assert (await session.step([4.0])).step_index == 2

    @pytest.mark.parametrize("bad", [["text"], 1.0])
    async def test_a_value_that_is_no_row_is_raised_in_its_place(self, client, server, bad):
        """The rows before the value are answered; the value is never sent and leaves no doubt."""
        async with client.session() as session:
            stream = session.stream([[1.0], [2.0], bad, [3.0]])
            got, error = await until_error(stream, streamcell.InvalidArgument)
            assert "sequence of numbers" in str(error)
            assert got == [0, 1]
            assert (await session.step([4.0])).step_index == 2
        assert server.named("GetSession") == []

    async def test_the_source_s_own_error_reaches_the_caller(self, client, server):
        """An error of the iterable comes out of the loop, after the replies to the rows before it."""

        def rows():
            yield [1.0]
            raise LookupError("no more")

        async with client.session() as session:
            stream = session.stream(rows())
            assert (await anext(stream)).step_index == 0
            with pytest.raises(LookupError, match="no more"):
                await anext(stream)


class TestOtherCalls:
    """Other calls beside a stream, and the stream's end."""

    async def test_leaving_the_loop_leaves_the_session_usable(self, client, server):
        """After a break the next call ends the stream and finds where the session stands."""
        async with client.session() as session:
            async for reply in session.stream(ROWS):
                if reply.step_index == 5:
                    break
            after = await session.step([1.0])
            num_applied = len(server.sessions[session.session_id].applied)
            assert after.step_index == num_applied - 1 >= 6
            assert [index for _, index in server.applied] == list(range(num_applied))

    async def test_another_call_ends_the_stream_and_says_so(self, client, server):
        """A loop that goes on after another call changed the session gets an error that says so."""
        async with client.session() as session:
            stream = session.stream(ROWS)
            await anext(stream)
            await session.reset()
            with pytest.raises(streamcell.StreamInterrupted, match=r"reset\(\)"):
                _ = [reply async for reply in stream]
            assert (await session.step([1.0])).step_index == 0

    async def test_a_forecast_within_the_loop_does_not_end_the_stream(self, client, server):
        """Calls that change nothing run beside the stream."""
        seen = []
        async with client.session() as session:
            async for reply in session.stream(ROWS):
                if reply.step_index == 10:
                    seen = await session.forecast(2)
                    assert (await session.refresh()).session_id == session.session_id
            assert session.next_step_index == 50
        assert len(seen) == 2

    async def test_cancelling_the_wait_for_a_reply_loses_nothing(self, client, server):
        """A timeout around one reply leaves the stream as it was."""
        gate = Gate()
        server.before = gate
        async with client.session() as session:
            stream = session.stream(ROWS)
            await cancel_once(gate.arrived, anext(stream))
            gate.open()
            assert await values(stream) == pytest.approx(expected(ROWS))

    async def test_closing_a_stream_ends_it(self, client, server):
        """After aclose there is nothing more, and no task is left."""
        async with client.session() as session:
            stream = session.stream(ROWS)
            await anext(stream)
            await stream.aclose()
            await stream.aclose()
            _ = [reply async for reply in stream]
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        assert [task for task in asyncio.all_tasks() if "StepStream" in repr(task)] == []

    async def test_the_session_s_end_ends_its_stream(self, client, server):
        """Leaving the block in the middle of a stream closes both."""
        async with client.session() as session:
            stream = session.stream(ROWS)
            await anext(stream)
        assert server.sessions == {}
        with pytest.raises(streamcell.StreamInterrupted):
            _ = [reply async for reply in stream]
