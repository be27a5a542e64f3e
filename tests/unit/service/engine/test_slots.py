"""Slots: low numbers first, the slot given back last next."""

from service.engine.slots import Slots


def test_slots_come_in_order_and_run_out():
    """A new pool gives 0, 1, 2 ... and then None."""
    slots = Slots(3)
    assert [slots.take() for _ in range(5)] == [0, 1, 2, None, None]
    assert slots.num_taken == 3


def test_the_slot_given_back_last_comes_first():
    """Used slots come before fresh ones, so that the memory touched stays small."""
    slots = Slots(10)
    for _ in range(4):
        slots.take()
    slots.give_back(1)
    slots.give_back(3)
    assert slots.num_taken == 2
    assert [slots.take() for _ in range(3)] == [3, 1, 4]


def test_a_full_pool_has_room_again_when_one_is_given_back():
    """A slot that is given back can be taken again."""
    slots = Slots(1)
    assert slots.take() == 0
    assert slots.take() is None
    slots.give_back(0)
    assert (slots.num_taken, slots.take()) == (0, 0)
