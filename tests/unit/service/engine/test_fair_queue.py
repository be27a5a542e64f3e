"""Callers take turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.fair_queue import FairQueue


def queue(*items):
    """A queue of (account, number)."""
    made = FairQueue(lambda item: item[0])
    for item in items:
        made.append(item)
    return made


def drained(made):
    """Every item, in the order of the queue."""
    return [made.popleft() for _ in range(len(made))]


def test_accounts_take_turns_and_each_keeps_its_order():
    """Whoever came first has the first turn."""
    made = queue(("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1), ("b", 2))
    assert drained(made) == [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("b", 2), ("a", 3)]
    assert not made


def test_an_account_that_comes_back_waits_for_its_turn():
    """It has no claim to the turns that it did not use."""
    made = queue(("a", 1), ("b", 1), ("b", 2))
    assert made.popleft() == ("a", 1)
    made.append(("a", 2))
    assert drained(made) == [("b", 1), ("a", 2), ("b", 2)]


def test_a_turn_can_be_passed_on():
    """`first` is what `popleft` takes."""
    made = queue(("a", 1), ("b", 1))
    assert (made.num_accounts, made.first) == (2, ("a", 1))
    made.pass_turn()
    assert made.first == made.popleft() == ("b", 1)
    assert made.num_accounts == 1


def test_an_empty_queue_has_nothing():
    """As with a deque."""
    with pytest.raises(IndexError):
        queue().popleft()
    assert list(queue()) == []


@given(st.lists(st.tuples(st.integers(0, 4), st.integers())), st.data())
def test_nothing_is_lost_and_no_account_waits_for_more_than_one_of_each_other(items, data):
    """Between two turns of an account that waits, each other account has one turn at most."""
    made = queue(*items)
    assert sorted(made) == sorted(items)
    order = drained(made)
    for account in {account for account, _ in items}:
        assert [item for item in order if item[0] == account] == [
            item for item in items if item[0] == account
        ]
    for at, (account, _) in enumerate(order):
        rest = order[at + 1 :]
        if any(other == account for other, _ in rest):
            until = next(index for index, (other, _) in enumerate(rest) if other == account)
            between = [other for other, _ in rest[:until]]
            assert len(between) == len(set(between))
