"""Bindings: sessions by number on one stream."""

import numpy as np
import pytest

from service.catalog import Catalog
from service.errors import Reason, StreamcellError
from service.servicers.bindings import Bindings
from tests import fakes
from tests.fakes import Rig, renamed


class House:
    """Two models, the sessions a, b, c on the first and z on the second, and the bindings of one stream."""

    def __init__(self):
        rigs = [Rig(renamed(fakes.recurrence(), name, "1")) for name in ("first", "second")]
        self.catalog = Catalog(rig.engine for rig in rigs)
        for session_id in "abc":
            self.catalog.open("me", session_id, "first")
        self.catalog.open("me", "z", "second")
        self.bindings = Bindings(self.catalog, "me", 5)


@pytest.fixture
def house():
    """Sessions and bindings."""
    return House()


def refusal(function, *args):
    """Returns the error that a call raises."""
    with pytest.raises(StreamcellError) as caught:
        function(*args)
    return caught.value


def test_sessions_get_the_next_numbers_in_order(house):
    """Binding more goes on where it stopped."""
    house.bindings.bind(["c", "a"])
    house.bindings.bind(["b"])
    assert len(house.bindings) == 3
    slots = [house.catalog.find("me", session_id)[1] for session_id in "cab"]
    assert [house.bindings.one(number)[1] for number in range(3)] == slots
    assert house.bindings.numbered(np.array([2, 0])).slots.tolist() == [slots[2], slots[0]]


def test_all_or_none_are_bound(house):
    """One session that is not open, or not the caller's, and nothing is bound."""
    assert refusal(house.bindings.bind, ["a", "nobody"]).reason is Reason.SESSION_NOT_FOUND
    assert len(house.bindings) == 0
    others = Bindings(house.catalog, "another", 5)
    assert refusal(others.bind, ["a"]).reason is Reason.SESSION_NOT_FOUND


def test_bindings_are_bounded(house):
    """A stream binds as many as the server says, however often it asks."""
    house.bindings.bind(["a", "b", "c"])
    error = refusal(house.bindings.bind, ["a", "b", "c"])
    assert error.metadata == {"field": "session_ids"}
    house.bindings.bind(["a", "b"])
    assert len(house.bindings) == 5


def test_a_number_that_is_not_bound(house):
    """It is told, with how many are."""
    house.bindings.bind(["a"])
    for function, argument in ((house.bindings.one, 1), (house.bindings.numbered, np.array([0, 1]))):
        error = refusal(function, argument)
        assert error.reason is Reason.INVALID_ARGUMENT
        assert "no session has number 1; this stream has bound 1" in error.message


def test_a_session_that_ended_is_known_by_its_generation(house):
    """Its number stays bound to what it was; the slot's next session is not reached by it."""
    house.bindings.bind(["a"])
    engine, slot, generation = house.bindings.one(0)
    engine.close(slot)
    house.catalog.open("me", "d", "first")
    assert house.bindings.one(0) == (engine, slot, generation)
    assert engine.sessions.generation[slot] != generation
    assert refusal(house.bindings.numbered, np.array([0])).reason is Reason.SESSION_NOT_FOUND


def test_a_selection_by_id(house):
    """Slots and generations stand in the order of the ids; those not found are told beside."""
    found = house.bindings.named(["b", "nobody", "a"])
    assert (found.count, found.found.tolist()) == (3, [0, 2])
    assert found.slots.tolist() == [house.catalog.find("me", session_id)[1] for session_id in "ba"]
    assert found.missing[1].reason is Reason.SESSION_NOT_FOUND
    assert found.engine.name == "first"


def test_a_selection_of_which_nothing_is_found(house):
    """Is the first one's error."""
    error = refusal(house.bindings.named, ["nobody", "noone"])
    assert (error.reason, error.metadata) == (Reason.SESSION_NOT_FOUND, {"session_id": "nobody"})


def test_one_model_a_selection(house):
    """Sessions of several models are refused, the models named; by number as well."""
    house.bindings.bind(["a", "z"])
    for function, argument in ((house.bindings.named, ["a", "z"]), (house.bindings.numbered, np.arange(2))):
        assert "first/1, second/1" in refusal(function, argument).message


def test_a_session_stands_once(house):
    """Twice in a selection is refused, by id and by number, also when it is bound twice."""
    house.bindings.bind(["a", "a"])
    for function, argument in (
        (house.bindings.named, ["a", "b", "a"]),
        (house.bindings.numbered, np.array([0, 0])),
        (house.bindings.numbered, np.array([0, 1])),
    ):
        assert "stands twice" in refusal(function, argument).message


def test_a_selection_of_nothing(house):
    """A frame without sessions on a stream without bindings is refused."""
    error = refusal(house.bindings.numbered, np.arange(0))
    assert error.metadata == {"field": "session_ids"}
