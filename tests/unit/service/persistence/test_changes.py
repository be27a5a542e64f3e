"""Checkpoints: what one write contains, and when they end."""

from tests.unit.service.persistence.sessions import step


async def test_a_session_that_changes_during_a_checkpoint_is_in_the_next_one(serve):
    """So a busy server writes each session once an interval, and the checkpoint ends."""
    served = await serve(checkpoint_interval_seconds=3600)
    await served.open(*"abc")
    for name in "abc":
        await served.ask("Step", step(name))
    changes, engine = served.write_behind.changes, served.engines[0]
    changes.begin()
    written = []
    while (checkpoint := changes.take(2, everything=True)) is not None:
        written += [write.key for write in checkpoint.writes]
        for name in "abc":
            await served.ask("Step", step(name, 1))
        changes.complete(checkpoint, await served.store.write(checkpoint.writes))
    assert sorted(written) == ["\0a", "\0b", "\0c"]
    assert changes.num_changed == 3
    assert (
        engine.sessions.durability.num_durable[[engine.sessions.find(f"\0{name}") for name in "abc"]].min()
        >= 1
    )
