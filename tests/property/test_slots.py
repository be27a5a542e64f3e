"""Slots beside a plain set: no slot twice, all slots used, low numbers first."""

from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.slots import Slots


@given(capacity=st.integers(1, 8), events=st.lists(st.integers(0, 10), max_size=60))
@settings(max_examples=200, deadline=None)
def test_slots_are_a_set_of_free_numbers(capacity, events):
    """Taking gives a free number, the one given back last first; None exactly if all are taken.

    An event of 0..5 takes a slot; any other event gives back a taken one.
    """
    slots, taken, returned = Slots(capacity), [], []
    for event in events:
        if event > 5 and taken:
            slot = taken.pop(event % len(taken))
            slots.give_back(slot)
            returned.append(slot)
        else:
            slot = slots.take()
            if len(taken) == capacity:
                assert slot is None
                continue
            expected = returned.pop() if returned else len(taken)
            assert slot == expected
            assert slot not in taken
            assert 0 <= slot < capacity
            taken.append(slot)
        assert slots.num_taken == len(taken)
