"""Accounts are rivals while several of them want something."""

from service.engine.rivals import Rivals

MEMORY = 256


def passed(rivals, count):
    """Lets iterations pass."""
    for _ in range(count):
        rivals.pass_iteration()


def test_each_account_counts_once():
    """However often it queues work, and whenever."""
    rivals = Rivals()
    for account in (1, 2, 2, 3, 1):
        rivals.note(account)
    assert rivals.count == 3
    passed(rivals, MEMORY)
    rivals.note(1)
    assert rivals.count == 3


def test_an_account_that_wants_nothing_more_is_forgotten():
    """Not before 256 iterations have passed, so that a pause of its client does not make others lone."""
    rivals = Rivals()
    passed(rivals, MEMORY - 1)
    rivals.note(1)
    rivals.note(2)
    passed(rivals, MEMORY)
    assert rivals.count == 2
    rivals.note(1)
    passed(rivals, 1)
    assert rivals.count == 1
    passed(rivals, 2 * MEMORY)
    assert rivals.count == 0
