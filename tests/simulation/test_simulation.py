"""Seeds of the simulation are clean, a seed is the same each time, and planted bugs are found."""

import random
import sqlite3

import pytest

from service.store import sqlite_rows
from service.store.base import MAX_EPOCH, Claim, Write, WriteKind
from tests.simulation import world
from tests.simulation.database import Database
from tests.simulation.planted import BUGS

NUM_SEEDS = 500
NUM_PARTS = 20  # several processes share them
# Of the bugs that few seeds find; `make sim` has the others, and all seeds.
NUM_SEEDS_FOR_A_BUG = 25
RARE = {
    "epoch_that_falls",
    "put_back_forgotten",
    "stale_copy_served",
    "lost_caller_of_a_fenced_session",
    "handed_over_in_the_middle",
}


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_no_seed_fails(part):
    """Whatever happens to servers, store and network, nothing is told wrongly."""
    assert [
        failure for seed in range(part, NUM_SEEDS, NUM_PARTS) if (failure := world.failure_of(seed))
    ] == []


@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_replays(seed):
    """The trace of a seed is the same, line by line."""
    first, second = (world.run(seed, is_traced=True) for _ in range(2))
    assert len(first.lines) > 100
    assert first.lines == second.lines


@pytest.mark.parametrize("bug", sorted(set(BUGS) - RARE))
def test_a_planted_bug_is_found(bug):
    """Within a few seeds."""
    found = world.find(bug, NUM_SEEDS_FOR_A_BUG)
    assert found is not None, f"{NUM_SEEDS_FOR_A_BUG} seeds did not find it"
    assert f"--seed {found.seed}" in found.summary


@pytest.mark.parametrize("seed", range(5))
def test_the_database_behaves_as_sqlite(seed):
    """Claims, writes and expiries of three owners on few keys, drawn at random, end alike in both."""
    draw = random.Random(seed)
    simulated, sqlite = Database(lambda key, row: None), sqlite3.connect(":memory:")
    for statement in (*sqlite_rows.LAYOUT, *sqlite_rows.ADDITIONS):
        sqlite.execute(statement)
    for owner in "AB":
        simulated.show_life(owner, lambda key: None)
    for now in range(400):
        owner, key, flags = draw.choice("ABC"), draw.choice("xyz"), [draw.random() < 0.6 for _ in range(3)]
        record = draw.choice((None, b"one", b"two"))
        if draw.random() < 0.4:
            claim = Claim(
                key,
                *flags,
                record=record,
                least_epoch=draw.randint(1, 6),
                most_epoch=draw.choice((draw.randint(1, 8), MAX_EPOCH)),
                asks=draw.random() < 0.5,
            )
            expected = sqlite_rows.claim(sqlite, [claim], owner, float(now), is_alive=simulated.is_alive)
            assert [simulated.claim(claim, owner, float(now))] == expected
        elif draw.random() < 0.95:
            row = simulated.rows.get(key)
            epoch = row.epoch if row and draw.random() < 0.8 else draw.randint(1, 8)
            write = Write(draw.choice(list(WriteKind)), key, epoch, record, float(now))
            expected = sqlite_rows.write(sqlite, [write], owner, float(now))
            assert [simulated.write(write, owner)] == expected
        else:
            assert simulated.expire(now - 20.0, 2) == sqlite_rows.expire(sqlite, now - 20.0, 2, float(now))
