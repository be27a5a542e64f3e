"""The corpus that fuzzing found, and mutations of it by a seed, through the targets: without atheris."""

import random

import pytest

from tests.fuzz import NAMES, corpus
from tests.fuzz.__main__ import target

NUM_MUTATIONS = {
    "router": 300,
    "snapshots": 300,
    "manifests": 2000,
    "tables": 500,
    "wire": 3000,
    "signatures": 3000,
    "lists": 3000,
}


@pytest.mark.parametrize("name", NAMES)
class TestTarget:
    """Nothing breaks, however odd the bytes."""

    def test_corpus(self, name):
        """Every input that reached something new, and every seed."""
        module = target(name)
        for raw in [*module.seeds(), *corpus.read(name)]:
            module.run(raw)

    def test_mutations(self, name):
        """A fixed number of changed inputs, the same ones each time."""
        module, chance = target(name), random.Random(f"streamcell {name}")
        entries = [*module.seeds(), *corpus.read(name)]
        for _ in range(NUM_MUTATIONS[name]):
            raw = chance.choice(entries)
            for _ in range(chance.randint(1, 3)):
                raw = module.mutate(raw, chance)
            module.run(raw)
