"""The Stream method: one answer to each request, in each session's order; errors, ends, drain; frames."""

import struct

import numpy as np
import pytest
from streamcell.v1 import streamcell_pb2 as pb

from tests import fakes
from tests.fakes import (
    FAULT,
    FAULT_TEXT,
    INTERVAL_NS,
    Alone,
    Served,
    answer,
    bits,
    ending,
    next_message,
    talk,
    turn,
)

SESSIONS = "abcdefg"
X = np.random.default_rng(4).standard_normal((40, 2)).astype(np.float32)


@pytest.fixture
async def served():
    """One model, served, with the sessions a, b and c open."""
    served = Served()
    await served.open(*"abc")
    return served


def step(number, session_id="", x=(1, 2), **fields):
    """Returns a step request of a stream; `number` is its request_id."""
    return pb.StreamRequest(request_id=number, step=pb.StepRequest(session_id=session_id, x=x, **fields))


def bind(*session_ids):
    """Returns a configuration of a stream."""
    return pb.StreamRequest(request_id=77, config=pb.StreamConfig(session_ids=session_ids))


async def bound(served, *session_ids, **kwargs):
    """Returns a stream with sessions bound."""
    stream = served.stream(**kwargs)
    (found,) = await talk(stream, bind(*session_ids))
    assert len(found.config.sessions) == len(session_ids), found
    return stream


async def streams_on_a_full_queue(served, num_streams=3):
    """Fills a queue of four steps; each other stream is refused a step and then waits with another."""
    first, *others = [await bound(served, *SESSIONS) for _ in range(1 + num_streams)]
    for number in range(4):
        first.receive(step(number, session=number).SerializeToString())
    for number, stream in enumerate(others, 4):
        stream.receive(step(number, session=number).SerializeToString())
        assert not stream.is_full
        stream.receive(step(10 + number, session=number).SerializeToString())
    assert [stream.is_full for stream in (first, *others)] == [False] + [True] * num_streams
    return first, *others


def frame(x, sessions=(), numbers=None, counts=None, indexes=None, times=None):
    """Returns a frame request, its columns packed."""

    def packed(kind, values):
        return b"" if values is None else struct.pack(f"<{len(values)}{kind}", *values)

    return pb.StreamRequest(
        request_id=5,
        frame=pb.Frame(
            session_ids=sessions,
            session_raw=packed("I", numbers),
            num_steps_raw=packed("I", counts),
            x_raw=np.asarray(x, "<f4").tobytes(),
            time_raw=packed("q", times),
            step_index_raw=packed("Q", indexes),
        ),
    )


async def ask_frame(stream, *args, **kwargs):
    """Sends a frame and returns its response."""
    (found,) = await talk(stream, frame(*args, **kwargs))
    assert found.request_id == 5
    assert found.WhichOneof("response") == "frame", found
    return found.frame


def predictions(response):
    """Returns predictions [rows, 2]."""
    return np.frombuffer(response.y_raw, "<f4").reshape(-1, 2)


def indexes_of(response):
    """Returns the index of each entry's first step."""
    return np.frombuffer(response.step_index_raw, "<u8").tolist()


class TestConfiguration:
    """Sessions get numbers on a stream."""

    async def test_a_configuration_is_answered_with_its_sessions(self, served):
        """Numbers go on from one configuration to the next; the sessions come in the request's order."""
        await served.ask("Step", pb.StepRequest(session_id="b", x=[1, 2]))
        stream = served.stream()
        first, second = await talk(stream, bind("b", "a"), bind("c"))
        assert (first.request_id, first.config.first_session, second.config.first_session) == (77, 0, 2)
        assert [(one.session_id, one.next_step_index) for one in first.config.sessions] == [
            ("b", 1),
            ("a", 0),
        ]

    async def test_a_configuration_that_fails_binds_nothing(self, served):
        """The stream goes on, with the numbers it had."""
        stream = await bound(served, "a")
        failed, again = await talk(stream, bind("b", "nobody"), bind("c"))
        assert failed.error.reason == "SESSION_NOT_FOUND"
        assert again.config.first_session == 1

    async def test_a_bound_session_that_ended_is_not_found(self, served):
        """Its number never reaches the session that has the slot now."""
        stream = await bound(served, "a")
        await served.ask("CloseSession", pb.CloseSessionRequest(session_id="a"))
        await served.open("d")
        (found,) = await talk(stream, step(1))
        assert found.error.reason == "SESSION_NOT_FOUND"
        stands = await served.ask("GetSession", pb.GetSessionRequest(session_id="d"))
        assert stands.session.next_step_index == 0

    async def test_another_principals_sessions_cannot_be_reached(self, served):
        """Neither by id, nor bound, nor in a frame."""
        stream = served.stream(principal="mallory")
        frame = pb.StreamRequest(request_id=3, frame=pb.Frame(session_ids=["a"], x_raw=bytes(8)))
        found = await talk(stream, step(1, "a"), bind("a"), frame)
        assert [one.error.reason for one in found] == ["SESSION_NOT_FOUND"] * 3


class TestSteps:
    """Steps and their answers."""

    async def test_an_answer_repeats_what_its_request_named(self, served):
        """A reply has the request's number, and the session by id or by number, as the request had."""
        stream = await bound(served, "a", "b")
        found = await talk(stream, step(10, "c"), step(11, session=1))
        assert [(one.request_id, one.session_id, one.session) for one in found] == [(10, "c", 0), (11, "", 1)]
        assert all(bits(one.step.y) == Alone(fakes.recurrence()).step((1, 2)) for one in found)

    async def test_replies_of_a_session_keep_the_order_of_its_requests(self, served):
        """However many of its steps are in flight."""
        stream = await bound(served, "a")
        found = await talk(stream, *(step(number, x=row) for number, row in enumerate(X)))
        assert [one.request_id for one in found] == list(range(40))
        assert b"".join(bits(one.step.y) for one in found) == Alone(fakes.recurrence()).fold(X)

    async def test_step_zero_opens_its_session(self, served):
        """Also on a stream; a first step with wrong values opens none."""
        found = await talk(
            served.stream(),
            step(1, "new", step_index=0),
            step(2, "new"),
            step(3, "bad", x=(1,), step_index=0),
        )
        answers = {one.request_id: one for one in found}
        assert [answers[number].step.step_index for number in (1, 2)] == [0, 1]
        assert answers[3].error.reason == "INVALID_ARGUMENT"
        assert len(served.engines[0].sessions) == 4

    async def test_an_error_of_a_step_does_not_end_the_stream(self, served):
        """The error is the step's answer, with its facts; other steps are answered, and errors counted."""
        stream = await bound(served, "a")
        found = await talk(
            stream, step(1, step_index=5), step(2, "nobody"), step(3, x=(1,)), step(4, session=9),
            step(5, model="other"), pb.StreamRequest(request_id=6), step(7), step(8, "nobody", session=3),
        )  # fmt: skip
        answers = {one.request_id: one for one in found}
        assert {number: one.error.reason for number, one in answers.items()} == {
            1: "STEP_GAP", 2: "SESSION_NOT_FOUND", 3: "INVALID_ARGUMENT", 4: "INVALID_ARGUMENT",
            5: "MODEL_CHANGED", 6: "INVALID_ARGUMENT", 7: "", 8: "SESSION_NOT_FOUND",
        }  # fmt: skip
        assert answers[1].error.metadata == {"expected_step_index": "0"}
        assert answers[2].session_id == "nobody"
        assert answers[4].session == 9
        assert answers[7].step.step_index == 0
        assert (answers[8].session_id, answers[8].session) == ("nobody", 0)
        assert len(served.errors) == 7

    async def test_a_long_id_comes_back_shortened(self, served):
        """An answer does not grow with what a client sends as an id."""
        (found,) = await talk(served.stream(), step(1, "x" * 100_000))
        assert len(found.session_id) == 128
        assert len(found.SerializeToString()) < 1000

    async def test_a_fault_is_the_steps_error_and_leaks_nothing(self, served, caplog):
        """The stream goes on after it."""
        stream = await bound(served, "a")
        (found,) = await talk(stream, step(1, x=(FAULT, 0)))
        assert found.error.reason == "INTERNAL"
        assert FAULT_TEXT not in str(found)
        assert FAULT_TEXT in caplog.text
        (after,) = await talk(stream, step(2))
        assert after.step.step_index == 0


class TestBackpressure:
    """A full queue, and a client that does not read."""

    async def test_a_step_is_refused_while_the_queue_is_full(self):
        """The error has a delay, and the steps in the queue are answered."""
        served = Served(max_queue_steps=2)
        await served.open(*"abc")
        found = await talk(
            await bound(served, *"abc"), step(1, session=0), step(2, session=1), step(3, session=2)
        )
        answers = {one.request_id: one for one in found}
        assert answers[3].error.reason == "OVERLOADED"
        assert answers[3].error.retry_delay_seconds > 0
        assert [answers[number].step.step_index for number in (1, 2)] == [0, 0]

    async def test_refused_streams_continue_one_message_each_as_there_is_room(self):
        """Each step done makes room for one message of one stream; the front does not read the others."""
        served = Served(max_queue_steps=4, max_batch_steps=1)
        await served.open(*SESSIONS)
        first, *others = await streams_on_a_full_queue(served)
        seen = []
        for number in range(3):
            message = await next_message(
                first
            )  # one iteration: `answer` would take several turns of the loop
            assert pb.StreamResponse.FromString(message).request_id == number
            seen.append([stream.is_full for stream in others])
            others[number].receive(step(20 + number, session=4 + number).SerializeToString())
        assert seen == [[False, True, True], [True, False, True], [True, True, False]]
        for stream in others:
            assert (await answer(stream)).error.reason == "OVERLOADED"
            assert [(await answer(stream)).step.step_index for _ in range(2)] == [0, 1]

    async def test_a_stream_continues_freely_once_no_other_waits(self):
        """Once there is room for all, a stream may fill the queue again, and then is refused again."""
        served = Served(max_queue_steps=4, max_batch_steps=1)
        await served.open(*SESSIONS)
        _, other = await streams_on_a_full_queue(served, num_streams=1)
        found = [await answer(other) for _ in range(2)]
        assert [one.request_id for one in found] == [4, 14]
        for number in range(5):
            other.receive(step(20 + number, session=number).SerializeToString())
        found = [await answer(other) for _ in range(5)]
        assert [one.error.reason for one in found] == ["OVERLOADED", "", "", "", ""]

    async def test_no_message_waits_for_an_idle_queue(self):
        """A message that waits for more room than a queue has is begun once nothing is queued."""
        served = Served(max_queue_steps=2, max_batch_steps=8)
        await served.open(*"abcd")
        stream, other = await bound(served, *"abcd"), await bound(served, *"abcd")
        stream.receive(step(1, session=0).SerializeToString())
        frame = pb.StreamRequest(frame=pb.Frame(session_ids=list("bcd"), x_raw=bytes(24)))
        for _ in range(2):
            other.receive(frame.SerializeToString())
        assert other.is_full
        await answer(stream)
        assert not other.is_full
        assert (await answer(other)).error.reason == "OVERLOADED"
        assert (await answer(other)).frame.step_index_raw == bytes(24)

    async def test_a_waiting_message_that_cannot_be_parsed_ends_its_stream(self):
        """Its stream ends as if the message had not waited, and other streams continue."""
        served = Served(max_queue_steps=4, max_batch_steps=1)
        await served.open(*SESSIONS)
        first, bad, other = await streams_on_a_full_queue(served, num_streams=2)
        bad.receive(b"\xff")
        for _ in range(4):
            await answer(first)
        assert (await answer(other)).error.reason == "OVERLOADED"
        assert (await answer(other)).step.step_index == 0
        assert (await answer(bad)).error.reason == "OVERLOADED"
        assert await next_message(bad) is None
        assert bad.status.code == 3

    async def test_a_waiting_message_of_a_closed_stream_is_dropped(self):
        """Its session does not move, and the other waiting streams continue."""
        served = Served(max_queue_steps=4, max_batch_steps=1)
        await served.open(*SESSIONS)
        first, gone, other = await streams_on_a_full_queue(served, num_streams=2)
        served.router.close(gone)
        for _ in range(4):
            await answer(first)
        assert (await answer(other)).error.reason == "OVERLOADED"
        assert (await answer(other)).step.step_index == 0
        (found,) = await talk(await bound(served, *SESSIONS), step(9, session=4))
        assert found.step.step_index == 0

    async def test_unanswered_messages_are_bounded(self):
        """A stream is full at its bound of unanswered messages; once an answer is taken there is room."""
        served = Served(max_stream_messages=4)
        await served.open("a")
        stream = await bound(served, "a")
        for number in range(4):
            assert not stream.is_full
            stream.receive(step(number).SerializeToString())
        assert stream.is_full
        await answer(stream)
        assert not stream.is_full


class TestEnd:
    """Streams end."""

    async def test_a_half_closed_stream_answers_every_request(self, served):
        """Then it ends with OK."""
        stream = await bound(served, "a")
        for number, row in enumerate(X):
            stream.receive(step(number, x=row).SerializeToString())
        stream.half_close()
        found = [await answer(stream) for _ in X]
        assert [one.step.step_index for one in found] == list(range(40))
        assert await ending(stream) is None

    async def test_a_half_close_ends_an_idle_stream(self, served):
        """With no work in flight there is nothing to wait for."""
        stream = served.stream()
        stream.half_close()
        assert await ending(stream) is None

    async def test_a_cancelled_stream_withdraws_steps_that_have_not_begun(self, served):
        """Its sessions stay open after their last applied step; other streams are served."""
        stream, other = await bound(served, "a"), await bound(served, "b")
        for row in X:
            stream.receive(step(1, x=row).SerializeToString())
        other.receive(step(2).SerializeToString())
        await turn()
        served.router.close(stream)
        assert (await answer(other)).step.step_index == 0
        assert served.num_streams == 1
        found = await served.ask("GetSession", pb.GetSessionRequest(session_id="a"))
        assert found.session.next_step_index == 1
        assert served.engines[0].is_idle

    async def test_a_message_that_cannot_be_parsed_ends_the_stream(self, served):
        """It ends with INVALID_ARGUMENT, after the answers to earlier messages."""
        stream = await bound(served, "a")
        stream.receive(step(1).SerializeToString())
        await turn()
        stream.receive(b"\xff\xff\xff")
        assert (await answer(stream)).step.step_index == 0
        assert (await ending(stream)).metadata == {"field": "message"}

    async def test_a_drain_finishes_the_work_in_flight(self, served):
        """Earlier requests are answered, later messages are not taken, and the stream ends with DRAINING."""
        stream = await bound(served, "a")
        for row in X:
            stream.receive(step(1, x=row).SerializeToString())
        served.catalog.is_draining = True
        served.router.drain()
        stream.receive(step(2).SerializeToString())
        stream.receive(step(3, "a").SerializeToString())
        found = [await answer(stream) for _ in X]
        assert [one.step.step_index for one in found] == list(range(40))
        assert await next_message(stream) is None
        assert (await ending(stream)).reason == "DRAINING"
        assert served.engines[0].sessions.progress.next_step[0] == 40
        assert served.engines[0].is_idle

    @pytest.mark.parametrize(
        "request_", [step(1, "a"), bind("a"), pb.StreamRequest(frame=pb.Frame(session_ids=["a"]))]
    )
    async def test_a_stream_opened_while_draining_ends_with_its_first_request(self, served, request_):
        """Whatever it asks first, so that the client connects again, to another server."""
        served.catalog.is_draining = True
        stream = served.stream()
        stream.receive(request_.SerializeToString())
        assert (await ending(stream)).reason == "DRAINING"


class TestFrames:
    """Frames that run."""

    @pytest.mark.parametrize(
        "named",
        [{"sessions": "abc"}, {"numbers": [0, 1, 2]}, {}],
        ids=["by id", "by number", "all that are bound"],
    )
    async def test_a_frame_is_many_steps_of_many_sessions(self, served, named):
        """However it names its sessions, an entry's rows have the bits of single steps of its session."""
        stream = await bound(served, "a", "b", "c")
        found = await ask_frame(stream, X[:18], counts=[7, 1, 10], **named)
        wanted = [Alone(fakes.recurrence()).fold(part) for part in (X[:7], X[7:8], X[8:18])]
        assert found.y_raw == b"".join(wanted)
        assert (indexes_of(found), list(found.errors)) == ([0, 0, 0], [])
        again = await ask_frame(stream, X[18:21], **named)
        assert indexes_of(again) == [7, 1, 10]

    async def test_numbers_may_come_in_any_order(self, served):
        """Rows follow the frame's order, not the binding's."""
        stream = await bound(served, "a", "b", "c")
        await ask_frame(stream, X[:2], numbers=[2, 0])
        found = await ask_frame(stream, X[2:5], numbers=[1, 2, 0])
        assert indexes_of(found) == [0, 1, 1]
        alone = Alone(fakes.recurrence())
        alone.step(X[0])
        assert bits(predictions(found)[1]) == alone.step(X[3])

    async def test_a_frame_sent_again_gets_the_same_bytes(self, served):
        """Entries applied before get their earlier replies; an entry applied in part goes on."""
        stream = served.stream()
        first = await ask_frame(stream, X[:4], ["a", "b"], counts=[2, 2], indexes=[0, 0])
        assert await ask_frame(stream, X[:4], ["a", "b"], counts=[2, 2], indexes=[0, 0]) == first
        longer = await ask_frame(stream, X[:4], ["a"], counts=[4], indexes=[0])
        assert longer.errors[:] == []
        assert longer.y_raw == Alone(fakes.recurrence()).fold(X[:4])

    async def test_frames_may_have_times(self):
        """A row has its own time, or without one the time of the row before plus the interval."""
        served = Served(fakes.recurrence(uses_time=True))
        await served.open("a", "b")
        stream = await bound(served, "a", "b")
        now = 10 * INTERVAL_NS
        missing = await ask_frame(stream, X[:2])
        assert [one.error.metadata["field"] for one in missing.errors] == ["time_raw"] * 2
        given = await ask_frame(stream, X[:2], times=[now, 2 * now])
        await ask_frame(stream, X[:6], counts=[1, 5])
        stands = [
            (await served.ask("GetSession", pb.GetSessionRequest(session_id=name))).session for name in "ab"
        ]
        assert list(given.errors) == []
        assert [one.last_time_ns for one in stands] == [now + INTERVAL_NS, 2 * now + 5 * INTERVAL_NS]

    async def test_frames_and_steps_of_a_session_keep_their_order(self, served):
        """A step behind a frame sees the frame applied, and a frame behind a step the step."""
        stream = await bound(served, "a")
        found = await talk(stream, step(1, x=X[0]), frame(X[1:12], counts=[11]), step(2, x=X[12]))
        assert [one.WhichOneof("response") for one in found] == ["step", "frame", "step"]
        y = bits(found[0].step.y) + found[1].frame.y_raw + bits(found[2].step.y)
        assert y == Alone(fakes.recurrence()).fold(X[:13])

    async def test_a_cancelled_stream_withdraws_its_frames(self, served):
        """Rows not scheduled yet never run, and the session can be used by others."""
        stream = await bound(served, "a")
        stream.receive(frame(X, counts=[40]).SerializeToString())
        await turn()
        served.router.close(stream)
        stands = await served.ask("GetSession", pb.GetSessionRequest(session_id="a"))
        assert stands.session.next_step_index == served.settings.max_piece_steps


class TestFailedFrames:
    """Frames and entries that fail."""

    async def test_entries_that_fail_are_listed_and_the_others_run(self, served):
        """Errors come in order of entry; a failed entry's rows are NaN and its index is 0."""
        stream = served.stream()
        x = X[:8].copy()
        x[4:6] = [3e38, 0]
        found = await ask_frame(
            stream, x, ["nobody", "a", "b", "c"], counts=[2, 2, 2, 2], indexes=[0, 7, 0, 0]
        )
        assert [(one.entry, one.num_applied, one.error.reason) for one in found.errors] == [
            (0, 0, "SESSION_NOT_FOUND"), (1, 0, "STEP_GAP"), (2, 0, "INVALID_ARGUMENT"),
        ]  # fmt: skip
        assert found.errors[1].error.metadata == {"expected_step_index": "0"}
        assert np.isnan(predictions(found)[:6]).all()
        assert bits(predictions(found)[6:]) == Alone(fakes.recurrence()).fold(X[6:8])
        assert indexes_of(found) == [0, 0, 0, 0]
        assert len(served.errors) == 3

    async def test_an_entry_that_fails_midway_has_the_number_of_steps_applied(self, served):
        """Steps of earlier pieces stay applied; all of the entry's predictions are NaN."""
        x = X[:12].copy()
        x[9:11] = [3e38, 0]
        found = await ask_frame(served.stream(), x, ["a"], counts=[12])
        assert [(one.entry, one.num_applied) for one in found.errors] == [(0, 8)]
        assert np.isnan(predictions(found)).all()
        stands = await served.ask("GetSession", pb.GetSessionRequest(session_id="a"))
        assert stands.session.next_step_index == 8

    @pytest.mark.parametrize(
        ("field", "request_"),
        [
            ("session_raw", frame(X[:1], "a", numbers=[0])),
            ("session_raw", frame(X[:1], numbers=[3])),
            ("session_ids", frame(X[:2], "aa")),
            ("num_steps_raw", frame(X[:1], "a", counts=[1, 1])),
            ("num_steps_raw", frame(X[:1], "ab", counts=[1, 0])),
            ("x_raw", frame(X[:3], "ab")),
            ("x_raw", frame([[1, np.nan]], "a")),
            ("time_raw", frame(X[:1], "a", times=[1, 2])),
            ("step_index_raw", frame(X[:1], "a", indexes=[1, 2])),
            ("step_index_raw", frame(X[:1], "a", indexes=[2**63])),
        ],
    )
    async def test_a_wrong_frame_is_refused_whole(self, served, field, request_):
        """The error names the column at fault, no step is applied, and the stream goes on."""
        stream = await bound(served, *"abc")
        (found,) = await talk(stream, request_)
        assert found.error.metadata == {"field": field}
        assert served.engines[0].sessions.progress.next_step[:3].tolist() == [0, 0, 0]
        (after,) = await talk(stream, step(1))
        assert after.step.step_index == 0

    async def test_a_frame_without_sessions_is_refused(self, served):
        """On a stream that has bound none."""
        (found,) = await talk(served.stream(), frame(X[:0]))
        assert found.error.metadata == {"field": "session_ids"}

    @pytest.mark.parametrize("counts", [[2, 2], [2**32 - 1, 2**32 - 1]])
    async def test_a_frame_of_too_many_steps_is_refused(self, counts):
        """It is refused before anything of that size is allocated."""
        served = Served(max_message_steps=3)
        await served.open("a", "b")
        (found,) = await talk(served.stream(), frame(X[:4], "ab", counts=counts))
        assert found.error.reason == "TOO_MANY_STEPS"
