"""The Stream method: every request one answer, in each session's order; errors, ends, drain; frames."""

import asyncio
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
    """Returns a configuration."""
    return pb.StreamRequest(request_id=77, config=pb.StreamConfig(session_ids=session_ids))


async def bound(served, *session_ids, **kwargs):
    """Returns a stream with sessions bound."""
    stream = served.stream(**kwargs)
    (found,) = await talk(stream, bind(*session_ids))
    assert len(found.config.sessions) == len(session_ids), found
    return stream


# -- Answers -----------------------------------------------------------------------------------------


async def test_a_configuration_binds_and_tells_where_sessions_stand(served):
    """Numbers go on from one configuration to the next; the sessions come in the request's order."""
    await served.ask("Step", pb.StepRequest(session_id="b", x=[1, 2]))
    stream = served.stream()
    first, second = await talk(stream, bind("b", "a"), bind("c"))
    assert (first.request_id, first.config.first_session, second.config.first_session) == (77, 0, 2)
    assert [(one.session_id, one.next_step_index) for one in first.config.sessions] == [("b", 1), ("a", 0)]


async def test_steps_are_answered_with_what_they_named(served):
    """A reply has its request's number, and the session by id or by number, as it was asked."""
    stream = await bound(served, "a", "b")
    found = await talk(stream, step(10, "c"), step(11, session=1))
    assert [(one.request_id, one.session_id, one.session) for one in found] == [(10, "c", 0), (11, "", 1)]
    assert all(bits(one.step.y) == Alone(fakes.recurrence()).step((1, 2)) for one in found)


async def test_replies_of_a_session_keep_its_order(served):
    """However many of its steps are under way."""
    stream = await bound(served, "a")
    found = await talk(stream, *(step(number, x=row) for number, row in enumerate(X)))
    assert [one.request_id for one in found] == list(range(40))
    assert b"".join(bits(one.step.y) for one in found) == Alone(fakes.recurrence()).fold(X)


async def test_an_error_of_a_step_does_not_end_the_stream(served):
    """It is the step's answer, with reason and facts; those beside it are answered, and it is counted."""
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


async def test_long_ids_come_back_cut(served):
    """An answer does not grow with what a client sends for an id."""
    (found,) = await talk(served.stream(), step(1, "x" * 100_000))
    assert len(found.session_id) == 128
    assert len(found.SerializeToString()) < 1000


async def test_step_zero_opens_its_session(served):
    """Also within a stream; a first step that is wrong opens none."""
    found = await talk(
        served.stream(), step(1, "new", step_index=0), step(2, "new"), step(3, "bad", x=(1,), step_index=0)
    )
    answers = {one.request_id: one for one in found}
    assert [answers[number].step.step_index for number in (1, 2)] == [0, 1]
    assert answers[3].error.reason == "INVALID_ARGUMENT"
    assert len(served.engines[0].sessions) == 4


async def test_a_bound_session_that_ended_is_not_found(served):
    """Its number never reaches the session that has its slot now."""
    stream = await bound(served, "a")
    await served.ask("CloseSession", pb.CloseSessionRequest(session_id="a"))
    await served.open("d")
    (found,) = await talk(stream, step(1))
    assert found.error.reason == "SESSION_NOT_FOUND"
    stands = await served.ask("GetSession", pb.GetSessionRequest(session_id="d"))
    assert stands.session.next_step_index == 0


async def test_a_configuration_that_fails_binds_nothing(served):
    """The stream goes on, with the numbers it had."""
    stream = await bound(served, "a")
    failed, again = await talk(stream, bind("b", "nobody"), bind("c"))
    assert failed.error.reason == "SESSION_NOT_FOUND"
    assert again.config.first_session == 1


async def test_another_principals_sessions_cannot_be_reached(served):
    """Neither by id, nor bound, nor in a frame."""
    stream = served.stream(principal="mallory")
    frame = pb.StreamRequest(request_id=3, frame=pb.Frame(session_ids=["a"], x_raw=bytes(8)))
    found = await talk(stream, step(1, "a"), bind("a"), frame)
    assert [one.error.reason for one in found] == ["SESSION_NOT_FOUND"] * 3


async def test_a_fault_is_the_steps_error_and_leaks_nothing(served, caplog):
    """The stream goes on after it."""
    stream = await bound(served, "a")
    (found,) = await talk(stream, step(1, x=(FAULT, 0)))
    assert found.error.reason == "INTERNAL"
    assert FAULT_TEXT not in str(found)
    assert FAULT_TEXT in caplog.text
    (after,) = await talk(stream, step(2))
    assert after.step.step_index == 0


async def test_a_full_queue_is_the_steps_error():
    """With the delay after which to come again; steps queued are answered."""
    served = Served(max_queue_steps=2)
    await served.open(*"abc")
    found = await talk(
        await bound(served, *"abc"), step(1, session=0), step(2, session=1), step(3, session=2)
    )
    answers = {one.request_id: one for one in found}
    assert answers[3].error.reason == "OVERLOADED"
    assert answers[3].error.retry_delay_seconds > 0
    assert [answers[number].step.step_index for number in (1, 2)] == [0, 0]


async def crowd(served, num_streams=3):
    """Fills a queue of four steps; the other streams are refused a step and then wait with another."""
    first, *others = [await bound(served, *SESSIONS) for _ in range(1 + num_streams)]
    for number in range(4):
        first.receive(step(number, session=number).SerializeToString())
    for number, stream in enumerate(others, 4):
        stream.receive(step(number, session=number).SerializeToString())
        assert not stream.is_full
        stream.receive(step(10 + number, session=number).SerializeToString())
    assert [stream.is_full for stream in (first, *others)] == [False] + [True] * num_streams
    return first, *others


async def told(stream):
    """Returns a stream's next answer."""
    return pb.StreamResponse.FromString(await asyncio.wait_for(next_message(stream), 5))


async def test_streams_refused_for_a_full_queue_take_turns_as_there_is_room():
    """Each step done makes room for the next of one stream; the front reads the others no further."""
    served = Served(max_queue_steps=4, max_batch_steps=1)
    await served.open(*SESSIONS)
    first, *others = await crowd(served)
    seen = []
    for number in range(3):
        answer = await next_message(first)  # one iteration
        assert pb.StreamResponse.FromString(answer).request_id == number
        seen.append([stream.is_full for stream in others])
        others[number].receive(step(20 + number, session=4 + number).SerializeToString())
    assert seen == [[False, True, True], [True, False, True], [True, True, False]]
    for stream in others:
        assert (await told(stream)).error.reason == "OVERLOADED"
        assert [(await told(stream)).step.step_index for _ in range(2)] == [0, 1]


async def test_a_stream_takes_no_turns_when_nobody_waits():
    """Once there is room for all, a stream may fill the queue again, and is refused beyond."""
    served = Served(max_queue_steps=4, max_batch_steps=1)
    await served.open(*SESSIONS)
    _, other = await crowd(served, num_streams=1)
    answers = [await told(other) for _ in range(2)]
    assert [answer.request_id for answer in answers] == [4, 14]
    for number in range(5):
        other.receive(step(20 + number, session=number).SerializeToString())
    answers = [await told(other) for _ in range(5)]
    assert [answer.error.reason for answer in answers] == ["OVERLOADED", "", "", "", ""]


async def test_an_idle_queue_holds_nobody_up():
    """Even a message that waits for more room than is free is taken once nothing is queued."""
    served = Served(max_queue_steps=2, max_batch_steps=8)
    await served.open(*"abcd")
    stream, other = await bound(served, *"abcd"), await bound(served, *"abcd")
    stream.receive(step(1, session=0).SerializeToString())
    frame = pb.StreamRequest(frame=pb.Frame(session_ids=list("bcd"), x_raw=bytes(24)))
    for _ in range(2):
        other.receive(frame.SerializeToString())
    assert other.is_full
    await told(stream)
    assert not other.is_full
    assert (await told(other)).error.reason == "OVERLOADED"
    assert (await told(other)).frame.step_index_raw == bytes(24)


async def test_a_message_that_waits_for_its_turn_can_end_its_stream():
    """As it would at once; the others' turns come."""
    served = Served(max_queue_steps=4, max_batch_steps=1)
    await served.open(*SESSIONS)
    first, bad, other = await crowd(served, num_streams=2)
    bad.receive(b"\xff")
    for _ in range(4):
        await told(first)
    assert (await told(other)).error.reason == "OVERLOADED"
    assert (await told(other)).step.step_index == 0
    assert (await told(bad)).error.reason == "OVERLOADED"
    assert await next_message(bad) is None
    assert bad.status.code == 3


async def test_nothing_is_taken_of_a_stream_that_is_gone_before_its_turn():
    """A client that waits for room hangs up: its session stands, and the queue goes on."""
    served = Served(max_queue_steps=4, max_batch_steps=1)
    await served.open(*SESSIONS)
    first, gone, other = await crowd(served, num_streams=2)
    served.router.close(gone)
    for _ in range(4):
        await told(first)
    assert (await told(other)).error.reason == "OVERLOADED"
    assert (await told(other)).step.step_index == 0
    (found,) = await talk(await bound(served, *SESSIONS), step(9, session=4))
    assert found.step.step_index == 0


async def test_a_half_closed_stream_answers_all_it_was_asked(served):
    """Then it ends with OK."""
    stream = await bound(served, "a")
    for number, row in enumerate(X):
        stream.receive(step(number, x=row).SerializeToString())
    stream.half_close()
    found = [await answer(stream) for _ in X]
    assert [one.step.step_index for one in found] == list(range(40))
    assert await ending(stream) is None


async def test_a_half_close_of_an_idle_stream_ends_it(served):
    """Nothing under way, nothing to wait for."""
    stream = served.stream()
    stream.half_close()
    assert await ending(stream) is None


async def test_a_cancelled_stream_withdraws_what_has_not_begun(served):
    """Its sessions live and stand where their applied steps left them; others are served."""
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


async def test_a_message_that_cannot_be_parsed_ends_the_stream(served):
    """With INVALID_ARGUMENT, once what was sent before is out."""
    stream = await bound(served, "a")
    stream.receive(step(1).SerializeToString())
    await turn()
    stream.receive(b"\xff\xff\xff")
    assert (await answer(stream)).step.step_index == 0
    assert (await ending(stream)).metadata == {"field": "message"}


async def test_unanswered_messages_are_bounded():
    """A stream that asks faster than it is answered is full; with an answer taken there is room."""
    served = Served(max_stream_messages=4)
    await served.open("a")
    stream = await bound(served, "a")
    for number in range(4):
        assert not stream.is_full
        stream.receive(step(number).SerializeToString())
    assert stream.is_full
    await answer(stream)
    assert not stream.is_full


async def test_a_drain_finishes_what_is_in_flight(served):
    """All that was asked is answered, later messages are not taken, and the stream ends with DRAINING."""
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
async def test_a_stream_opened_while_draining_ends_with_its_first_request(served, request_):
    """So that the client connects again, elsewhere, whatever it asks first."""
    served.catalog.is_draining = True
    stream = served.stream()
    stream.receive(request_.SerializeToString())
    assert (await ending(stream)).reason == "DRAINING"


# -- Frames ------------------------------------------------------------------------------------------


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


async def framed(stream, *args, **kwargs):
    """Returns a frame's response."""
    (found,) = await talk(stream, frame(*args, **kwargs))
    assert found.request_id == 5
    assert found.WhichOneof("response") == "frame", found
    return found.frame


def y_of(response):
    """Returns predictions [rows, 2]."""
    return np.frombuffer(response.y_raw, "<f4").reshape(-1, 2)


def indexes_of(response):
    """Returns the index of each entry's first step."""
    return np.frombuffer(response.step_index_raw, "<u8").tolist()


@pytest.mark.parametrize(
    "named",
    [{"sessions": "abc"}, {"numbers": [0, 1, 2]}, {}],
    ids=["by id", "by number", "all that are bound"],
)
async def test_a_frame_is_many_steps_of_many_sessions(served, named):
    """However its sessions are named, each entry's rows are single steps of its session, bit for bit."""
    stream = await bound(served, "a", "b", "c")
    found = await framed(stream, X[:18], counts=[7, 1, 10], **named)
    wanted = [Alone(fakes.recurrence()).fold(part) for part in (X[:7], X[7:8], X[8:18])]
    assert found.y_raw == b"".join(wanted)
    assert (indexes_of(found), list(found.errors)) == ([0, 0, 0], [])
    again = await framed(stream, X[18:21], **named)
    assert indexes_of(again) == [7, 1, 10]


async def test_numbers_may_stand_in_any_order(served):
    """Rows follow the frame's order, not the binding's."""
    stream = await bound(served, "a", "b", "c")
    await framed(stream, X[:2], numbers=[2, 0])
    found = await framed(stream, X[2:5], numbers=[1, 2, 0])
    assert indexes_of(found) == [0, 1, 1]
    alone = Alone(fakes.recurrence())
    alone.step(X[0])
    assert bits(y_of(found)[1]) == alone.step(X[3])


async def test_entries_that_fail_are_told_and_the_others_run(served):
    """Errors stand in order of entry; their rows are NaN and their index 0."""
    stream = served.stream()
    x = X[:8].copy()
    x[4:6] = [3e38, 0]
    found = await framed(stream, x, ["nobody", "a", "b", "c"], counts=[2, 2, 2, 2], indexes=[0, 7, 0, 0])
    assert [(one.entry, one.num_applied, one.error.reason) for one in found.errors] == [
        (0, 0, "SESSION_NOT_FOUND"), (1, 0, "STEP_GAP"), (2, 0, "INVALID_ARGUMENT"),
    ]  # fmt: skip
    assert found.errors[1].error.metadata == {"expected_step_index": "0"}
    assert np.isnan(y_of(found)[:6]).all()
    assert bits(y_of(found)[6:]) == Alone(fakes.recurrence()).fold(X[6:8])
    assert indexes_of(found) == [0, 0, 0, 0]
    assert len(served.errors) == 3


async def test_an_entry_that_fails_midway_tells_how_far_it_came(served):
    """Steps of earlier pieces stay applied; all of its predictions are NaN."""
    x = X[:12].copy()
    x[9:11] = [3e38, 0]
    found = await framed(served.stream(), x, ["a"], counts=[12])
    assert [(one.entry, one.num_applied) for one in found.errors] == [(0, 8)]
    assert np.isnan(y_of(found)).all()
    stands = await served.ask("GetSession", pb.GetSessionRequest(session_id="a"))
    assert stands.session.next_step_index == 8


async def test_a_frame_sent_again_gets_the_same_bytes(served):
    """Entries applied before are answered as they were, those in part go on."""
    stream = served.stream()
    first = await framed(stream, X[:4], ["a", "b"], counts=[2, 2], indexes=[0, 0])
    assert await framed(stream, X[:4], ["a", "b"], counts=[2, 2], indexes=[0, 0]) == first
    longer = await framed(stream, X[:4], ["a"], counts=[4], indexes=[0])
    assert longer.errors[:] == []
    assert longer.y_raw == Alone(fakes.recurrence()).fold(X[:4])


async def test_frames_with_times():
    """Times are rows' own, or follow where they are left out."""
    served = Served(fakes.recurrence(uses_time=True))
    await served.open("a", "b")
    stream = await bound(served, "a", "b")
    now = 10 * INTERVAL_NS
    missing = await framed(stream, X[:2])
    assert [one.error.metadata["field"] for one in missing.errors] == ["time_raw"] * 2
    given = await framed(stream, X[:2], times=[now, 2 * now])
    await framed(stream, X[:6], counts=[1, 5])
    stands = [
        (await served.ask("GetSession", pb.GetSessionRequest(session_id=name))).session for name in "ab"
    ]
    assert list(given.errors) == []
    assert [one.last_time_ns for one in stands] == [now + INTERVAL_NS, 2 * now + 5 * INTERVAL_NS]


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
async def test_a_frame_that_cannot_be_is_refused_whole(served, field, request_):
    """The column at fault is named, nothing of it is applied, and the stream goes on."""
    stream = await bound(served, *"abc")
    (found,) = await talk(stream, request_)
    assert found.error.metadata == {"field": field}
    assert served.engines[0].sessions.progress.next_step[:3].tolist() == [0, 0, 0]
    (after,) = await talk(stream, step(1))
    assert after.step.step_index == 0


async def test_a_frame_without_sessions(served):
    """On a stream that has bound none."""
    (found,) = await talk(served.stream(), frame(X[:0]))
    assert found.error.metadata == {"field": "session_ids"}


@pytest.mark.parametrize("counts", [[2, 2], [2**32 - 1, 2**32 - 1]])
async def test_a_frame_of_too_many_steps(counts):
    """Refused before anything of that size is made."""
    served = Served(max_message_steps=3)
    await served.open("a", "b")
    (found,) = await talk(served.stream(), frame(X[:4], "ab", counts=counts))
    assert found.error.reason == "TOO_MANY_STEPS"


async def test_frames_and_steps_of_a_session_keep_their_order(served):
    """A step behind a frame sees the frame applied, and the other way round."""
    stream = await bound(served, "a")
    found = await talk(stream, step(1, x=X[0]), frame(X[1:12], counts=[11]), step(2, x=X[12]))
    assert [one.WhichOneof("response") for one in found] == ["step", "frame", "step"]
    y = bits(found[0].step.y) + found[1].frame.y_raw + bits(found[2].step.y)
    assert y == Alone(fakes.recurrence()).fold(X[:13])


async def test_a_cancelled_stream_withdraws_its_frames(served):
    """Rows not scheduled yet never run; the session goes on for others."""
    stream = await bound(served, "a")
    stream.receive(frame(X, counts=[40]).SerializeToString())
    await turn()
    served.router.close(stream)
    stands = await served.ask("GetSession", pb.GetSessionRequest(session_id="a"))
    assert stands.session.next_step_index == served.settings.max_piece_steps
