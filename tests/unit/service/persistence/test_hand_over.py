"""Sessions that move between servers because a client came elsewhere: nothing is lost, and nobody is refused.

The owner asked for a session stores it, releases it and is then without it. An owner that is dead or does not
answer is passed over as the rules of taking over allow.
"""

import asyncio

import numpy as np
import pytest
from streamcell.v1 import streamcell_pb2 as pb

from service.persistence import asking, hand_over
from tests import fakes
from tests.fakes import Alone, answer, bits, talk
from tests.unit.service.persistence.sessions import BOUND_SECONDS, X, resume, step, until, until_stored

NEVER = {"checkpoint_interval_seconds": 3600}  # nothing is written unless someone waits for it


def sample(served, name):
    """Returns a count of sessions on a server."""
    labels = {"model": served.engines[0].name, "version": served.engines[0].version}
    return served.metrics.registry.get_sample_value(f"streamcell_sessions_{name}_total", labels)


def is_resident(served, name="s"):
    """Returns whether a server has a session in memory."""
    return served.engines[0].sessions.find(f"\0{name}") is not None


def deaf(served):
    """Makes a server one that hears nothing, as if it were stopped or very busy."""
    served.write_behind.on_asked = None


class TestClientsThatMove:
    """Clients without step indexes, that come to whichever server."""

    async def test_a_step_elsewhere_goes_on_with_the_newest_state(self, serve_together):
        """Though the first server had written nothing of it: the owner stores it before it gives it away."""
        first, second = await serve_together(**NEVER), await serve_together(**NEVER)
        alone = Alone(fakes.recurrence())
        await first.open("s")
        for row in range(3):
            assert bits((await first.ask("Step", step(row=row))).y) == alone.step(X[row])
        reply = await second.ask("Step", step(row=3))
        assert (reply.step_index, bits(reply.y)) == (3, alone.step(X[3]))
        assert (is_resident(first), is_resident(second)) == (False, True)
        assert [sample(first, name) for name in ("handed_over", "fenced", "evicted")] == [1, 0, 0]

    async def test_steps_that_alternate_between_servers_are_all_answered(self, serve_together):
        """As by workers that share a port, with a connection to each."""
        servers = [await serve_together(**NEVER) for _ in range(3)]
        alone = Alone(fakes.recurrence())
        await servers[0].open("s")
        for row in range(20):
            reply = await servers[row * 7 % 3].ask("Step", step(row=row))
            assert (reply.step_index, bits(reply.y)) == (row, alone.step(X[row]))
        assert sum(sample(each, "fenced") for each in servers) == 0

    async def test_callers_on_two_servers_at_once_are_all_answered(self, serve_together):
        """Each step is applied once, in some order."""
        servers = [await serve_together(**NEVER) for _ in range(2)]
        await servers[0].open("s")

        async def call(served, count):
            return [(await served.ask("Step", step())).step_index for _ in range(count)]

        found = await asyncio.gather(*(call(each, 8) for each in servers for _ in range(2)))
        assert all(indexes == sorted(indexes) for indexes in found)
        assert sorted(index for indexes in found for index in indexes) == list(range(32))

    @pytest.mark.parametrize("is_durable", [False, True])
    async def test_open_elsewhere_finds_the_newest_state(self, serve_together, is_durable):
        """And so do GetSession, Forecast and SnapshotSession, without an index to tell."""
        first, second = await serve_together(**NEVER), await serve_together(**NEVER)
        await first.ask("OpenSession", pb.OpenSessionRequest(session_id="s", durable=is_durable))
        for row in range(3):
            await first.ask("Step", step(row=row))
        assert (await resume(second)).next_step_index == 3
        await second.ask("Step", step(row=3))
        found = await first.ask("GetSession", pb.GetSessionRequest(session_id="s"))
        assert (found.session.next_step_index, found.session.durable) == (4, is_durable)
        forecast = await second.ask("Forecast", pb.ForecastRequest(session_id="s", horizon_steps=2))
        assert forecast.next_step_index == 4

    async def test_an_evicted_session_is_given_too(self, serve_together):
        """Its row is still the server's that evicted it."""
        first = await serve_together(max_resident_sessions=1)
        second = await serve_together()
        await first.open("s")
        await first.ask("Step", step())
        await first.open("t")  # s leaves memory
        assert not is_resident(first)
        assert (await second.ask("Step", step(row=1))).step_index == 1
        assert sample(first, "handed_over") == 0


class TestWorkUnderWay:
    """The owner has work for the session when it is asked."""

    async def test_work_that_came_before_is_finished_first(self, serve_together):
        """Steps of a stream and a long input are all answered; the step elsewhere comes after them."""
        first, second = await serve_together(**NEVER), await serve_together(**NEVER)
        alone = Alone(fakes.recurrence())
        await first.open("s")
        stream = first.stream()
        for row in range(8):
            stream.receive(pb.StreamRequest(step=step(row=row)).SerializeToString())
        prime = asyncio.create_task(first.ask("Prime", pb.PrimeRequest(session_id="s", x=X.reshape(-1))))
        await fakes.turn()
        reply = await second.ask("Step", step(row=5))
        for row in range(8):
            assert bits((await answer(stream)).step.y) == alone.step(X[row])
        alone.fold(X)
        assert (await prime).step_index == 8 + len(X) - 1
        assert (reply.step_index, bits(reply.y)) == (8 + len(X), alone.step(X[5]))

    async def test_a_stream_goes_on_with_a_session_that_left(self, serve_together):
        """By id, by number and in frames: the session comes back from its new owner for each."""
        first, second = await serve_together(**NEVER), await serve_together(**NEVER)
        alone = Alone(fakes.recurrence())
        await first.open("s", "t")
        stream = first.stream()
        config = pb.StreamConfig(session_ids=["s", "t"])
        await talk(stream, pb.StreamRequest(config=config))
        by_id = pb.StreamRequest(step=step(row=1))
        by_number = pb.StreamRequest(step=pb.StepRequest(session=0, x=X[1]))
        frame = pb.StreamRequest(frame=pb.Frame(x_raw=np.tile(X[1], 2).astype("<f4").tobytes()))
        for request in (by_id, by_number, frame):
            assert bits((await second.ask("Step", step(row=0))).y) == alone.step(X[0])
            (found,) = await talk(stream, request)
            assert not found.HasField("error"), found.error
            assert not found.frame.errors
            raw = found.frame.y_raw[:8] if request is frame else bits(found.step.y)
            assert raw == alone.step(X[1])

    async def test_whoever_comes_while_the_session_leaves_waits_for_it(self, serve_together):
        """A request at the former owner asks the new one in turn."""
        first, second = await serve_together(**NEVER), await serve_together(**NEVER)
        await first.open("s")
        await first.ask("Step", step())
        first.store.is_blocked = True  # the owner has begun, and waits for the store
        moved = asyncio.create_task(second.ask("Step", step(row=1)))
        await until(lambda: first.catalog.persistence._leaving)
        stayed = asyncio.create_task(first.ask("Step", step(row=2)))
        await fakes.turn()
        first.store.is_blocked = False
        found = sorted([(await moved).step_index, (await stayed).step_index])
        assert found == [1, 2]


class TestOwnersThatDoNotAnswer:
    """Dead owners, deaf owners, owners without their store."""

    async def test_the_session_of_a_dead_owner_is_for_any_step(self, serve_together):
        """It goes on from what was stored, and the reply's index says from where."""
        first, second = await serve_together(**NEVER), await serve_together()
        await first.open("s")
        await first.ask("Step", step())
        await resume(second)  # stores step 0
        await resume(first)
        await first.ask("Step", step(row=1))
        await first.write_behind.abandon()
        reply = await second.ask("Step", step(row=2))
        assert reply.step_index == 1

    async def test_a_drained_owner_has_released_its_sessions(self, serve_together):
        """A step elsewhere that comes before that, during or after, loses nothing."""
        first, second = await serve_together(**NEVER), await serve_together()
        names = [f"s{number}" for number in range(9)]
        await first.open(*names)
        for name in names:
            await first.ask("Step", step(name))
        before = await second.ask("Step", step("s0", 1))
        during = [asyncio.create_task(second.ask("Step", step(name, 1))) for name in names[1:5]]
        assert await first.write_behind.stop()
        after = [await second.ask("Step", step(name, 1)) for name in names[5:]]
        replies = [before, *await asyncio.gather(*during), *after]
        assert [reply.step_index for reply in replies] == [1] * len(names)

    async def test_an_owner_that_does_not_hear_loses_the_session_to_an_index(
        self, serve_together, monkeypatch
    ):
        """After a while. A step that is ahead of what is stored finds that out."""
        monkeypatch.setattr(asking, "_ANSWER_SECONDS", 0.05)
        first, second = await serve_together(**NEVER), await serve_together()
        await first.open("s", "t")
        await first.ask("Step", step("t"))
        deaf(first)
        assert (await second.ask("Step", step("s", step_index=0))).step_index == 0
        found = await second.refused("Step", step("t", 1, step_index=1))
        assert (found.reason, found.metadata["expected_step_index"]) == ("STEP_GAP", "0")

    async def test_an_owner_that_does_not_hear_keeps_the_session_from_a_plain_step(
        self, serve_together, monkeypatch
    ):
        """The owner's state may be newer: the caller is told whose the session is."""
        monkeypatch.setattr(asking, "_PATIENCE_SECONDS", 0.3)
        first, second = await serve_together(**NEVER), await serve_together()
        await first.open("s")
        deaf(first)
        assert (await second.refused("Step", step())).reason == "SESSION_FENCED"
        assert (await first.ask("Step", step())).step_index == 0

    async def test_a_plain_step_that_waits_gains_by_one_who_may_take_over(self, serve_together, monkeypatch):
        """Both are answered, without the wait that the plain step alone would have had."""
        monkeypatch.setattr(asking, "_ANSWER_SECONDS", 0.05)
        first, second = await serve_together(**NEVER), await serve_together()
        await first.open("s")
        deaf(first)
        plain = asyncio.create_task(second.ask("Step", step()))
        await fakes.turn()
        await resume(second)
        assert (await plain).step_index == 0
        assert sample(second, "restored") == 1

    async def test_an_owner_without_its_store_keeps_its_session(self, serve_together):
        """It cannot store it, so it does not give it away, and it goes on serving."""
        first, second = await serve_together(), await serve_together()
        await first.open("s")
        await first.ask("Step", step())
        await until_stored(first, num_steps=1)
        first.store.trouble = "gone"
        await first.ask("Step", step(row=1))
        asked = asyncio.create_task(second.ask("Step", step(row=1)))
        await until(lambda: first.store.asked[first.store.owner].empty())
        assert (await first.ask("Step", step(row=2))).step_index == 2
        first.store.trouble = ""
        assert (await asyncio.wait_for(asked, BOUND_SECONDS)).step_index == 3


class TestBounds:
    """What moves cost is bounded and counted."""

    async def test_a_session_stays_for_a_while(self, serve_together, monkeypatch):
        """Two servers whose clients both want it do not spend their time on passing it on."""
        monkeypatch.setattr(hand_over, "_LEAST_STAY_SECONDS", 1000.0)
        monkeypatch.setattr(asking, "_PATIENCE_SECONDS", 0.1)
        first, second = await serve_together(**NEVER), await serve_together()
        await first.open("s")
        assert (await second.refused("Step", step())).reason == "SESSION_FENCED"
        assert sample(first, "handed_over") == 0

    async def test_a_fault_is_counted_and_the_session_stays(self, serve_together, monkeypatch, caplog):
        """And the next one who asks gets it."""
        first, second = await serve_together(**NEVER), await serve_together()
        await first.open("s")
        outcomes = [MemoryError("a fault")]
        real = hand_over.between_steps

        async def failing(session, action):
            if outcomes:
                raise outcomes.pop()
            await real(session, action)

        monkeypatch.setattr(hand_over, "between_steps", failing)
        assert (await second.ask("Step", step())).step_index == 0
        found = first.metrics.registry.get_sample_value(
            "streamcell_background_faults_total", {"task": "hand_over"}
        )
        assert found == 1
        assert "fault" in [record.getMessage() for record in caplog.records]
