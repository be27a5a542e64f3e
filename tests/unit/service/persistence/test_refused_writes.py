"""A store that restarted and lost rows: the server that has the sessions in memory writes them again."""

import dataclasses

import pytest

from service.engine import snapshot
from tests import fakes
from tests.fakes import Alone, bits
from tests.unit.service.persistence.sessions import X, resume, step, until, until_stored


@pytest.mark.parametrize("loss", ["all", "some", "another's"])
async def test_rows_that_the_store_lost_are_written_again(serve, loss):
    """Rows may be gone, or back at an earlier owner; no session is fenced by a loss."""
    old, served, alone = await serve(), await serve(), Alone(fakes.recurrence())
    await old.open("s")
    before = dataclasses.replace(old.store.rows["\0s"])
    assert (await resume(served)).epoch == 2
    await served.ask("Step", step(row=0))
    await until_stored(served, num_steps=1)
    alone.step(X[0])
    served.store.run = old.store.run = "second"
    if loss == "all":
        served.store.rows.clear()
    else:
        served.store.rows["\0s"] = before
        before.owner = served.store.owner if loss == "some" else before.owner
    for row in (1, 2):
        assert bits((await served.ask("Step", step(row=row))).y) == alone.step(X[row])
    await until_stored(served, num_steps=3)
    assert snapshot.decode(served.store.rows["\0s"].record).progress.next_step[0] == 3
    if loss == "another's":  # the earlier owner does not profit from the loss
        await old.ask("Step", step(row=0))
        await until(lambda: old.engines[0].sessions.find("\0s") is None)


async def test_a_restarted_store_gets_every_session_in_memory(serve):
    """Idle sessions too: steps that a reply called stored are stored again."""
    served = await serve()
    await served.open("s")
    await served.ask("Step", step())
    await until_stored(served, num_steps=1)
    served.store.rows.clear()
    served.store.run = "second"
    await until(lambda: "\0s" in served.store.rows)
    assert snapshot.decode(served.store.rows["\0s"].record).progress.next_step[0] == 1
