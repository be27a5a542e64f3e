"""Durable sessions: answered once the store has their steps, refused while the store is away."""

import asyncio

import numpy as np
from streamcell.v1 import streamcell_pb2 as pb

from tests import fakes
from tests.fakes import Alone, talk
from tests.unit.service.persistence.sessions import X, resume, step, until, until_stored


async def test_a_durable_step_is_answered_once_it_is_stored(serve):
    """One write serves all that wait; sessions that are not durable do not wait."""
    served = await serve(checkpoint_interval_seconds=3600)
    for name in "abc":
        request = pb.OpenSessionRequest(session_id=name, durable=True)
        assert (await served.ask("OpenSession", request)).session.durable
    await served.open("free")
    served.store.is_blocked = True
    asked = [asyncio.create_task(served.ask("Step", step(name))) for name in "abc"]
    assert (await served.ask("Step", step("free"))).num_durable_steps == 0
    await until(lambda: served.store.num_writes)
    assert not any(task.done() for task in asked)
    served.store.is_blocked = False
    assert [(await task).num_durable_steps for task in asked] == [1, 1, 1]
    again = await served.ask("Step", step("a", step_index=0))
    assert again.num_durable_steps == 1


async def test_durable_frames_and_primes_wait_as_well(serve):
    """Their answers say that all their steps are stored."""
    served = await serve(checkpoint_interval_seconds=3600)
    await served.ask("OpenSession", pb.OpenSessionRequest(session_id="s", durable=True))
    primed = await served.ask("Prime", pb.PrimeRequest(session_id="s", x=X[:5].reshape(-1)))
    assert primed.num_durable_steps == 5
    frame = pb.Frame(session_ids=["s"], num_steps_raw=b"\x02\0\0\0", x_raw=X[5:7].tobytes())
    (found,) = await talk(served.stream(), pb.StreamRequest(frame=frame))
    assert np.frombuffer(found.frame.num_durable_steps_raw, "<u8").tolist() == [7]


async def test_without_its_store_a_server_refuses_durable_and_new_sessions(serve):
    """With STORE_UNAVAILABLE, and no step is applied; other sessions go on, and are stored later."""
    served = await serve()
    await served.open("s")
    await served.ask("OpenSession", pb.OpenSessionRequest(session_id="d", durable=True))
    served.store.trouble = "gone"
    await served.ask("Step", step("s"))
    await until(lambda: served.engines[0].sessions.durability.trouble)
    assert (await served.refused("Step", step("d"))).reason == "STORE_UNAVAILABLE"
    assert (await served.refused("OpenSession", pb.OpenSessionRequest(session_id="n"))).code == 14
    assert (await served.refused("Step", step("elsewhere"))).reason == "STORE_UNAVAILABLE"
    for row in range(1, 5):
        assert (await served.ask("Step", step("s", row))).num_durable_steps == 0
    assert served.metrics.registry.get_sample_value("streamcell_store_up") == 0
    await until(lambda: served.metrics.registry.get_sample_value("streamcell_store_lag_seconds") > 0)
    served.store.trouble = ""
    await until_stored(served, "s", 5)
    assert (await served.ask("Step", step("d"))).step_index == 0
    assert (await served.ask("Step", step("d"))).num_durable_steps == 2
    assert served.metrics.registry.get_sample_value("streamcell_store_up") == 1


async def test_a_reset_is_stored_before_it_is_answered(serve):
    """Otherwise a server that takes the session over would restore the steps."""
    first, second = await serve(checkpoint_interval_seconds=3600), await serve()
    await first.open("s")
    await first.ask("Prime", pb.PrimeRequest(session_id="s", x=X[:5].reshape(-1)))
    await first.ask("ResetSession", pb.ResetSessionRequest(session_id="s"))
    assert (await resume(second)).next_step_index == 0


async def test_a_fenced_session_does_not_fail_the_others_of_its_frame(serve):
    """The other durable session was applied and stored, and its answer says so."""
    served, other, alone = (
        await serve(checkpoint_interval_seconds=3600),
        await serve(),
        Alone(fakes.recurrence()),
    )
    for name in "ab":
        await served.ask("OpenSession", pb.OpenSessionRequest(session_id=name, durable=True))
    await resume(other, "a")
    frame = pb.Frame(session_ids=["a", "b"], x_raw=X[:2].tobytes())
    (found,) = await talk(served.stream(), pb.StreamRequest(frame=frame))
    assert {error.entry: error.error.reason for error in found.frame.errors} == {0: "SESSION_FENCED"}
    y = np.frombuffer(found.frame.y_raw, "<f4")
    assert np.isnan(y[:2]).all()
    assert y[2:].tobytes() == alone.step(X[1])
    assert np.frombuffer(found.frame.num_durable_steps_raw, "<u8").tolist() == [0, 1]


async def test_a_session_that_is_made_durable_later_is_stored_as_durable(serve):
    """Before OpenSession answers: a server that goes on after a crash must keep the promise."""
    served, second = await serve(checkpoint_interval_seconds=3600), await serve()
    await served.open("s")
    opened = await served.ask("OpenSession", pb.OpenSessionRequest(session_id="s", durable=True))
    assert opened.session.durable
    assert (await resume(second)).durable


async def test_a_client_that_goes_away_while_its_step_is_stored_is_no_fault(serve, logged):
    """The write completes, and nobody takes the answer."""
    served = await serve(checkpoint_interval_seconds=3600)
    await served.ask("OpenSession", pb.OpenSessionRequest(session_id="s", durable=True))
    served.store.is_blocked = True
    stream = served.stream()
    stream.receive(pb.StreamRequest(step=step()).SerializeToString())
    await until(lambda: served.store.num_writes)
    served.router.close(stream)
    served.store.is_blocked = False
    await until_stored(served, num_steps=1)
    await fakes.turn()
    assert not logged("fault")
    assert stream.status is None
