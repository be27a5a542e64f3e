"""Bindings: sessions by number on one stream."""

import numpy as np
import pytest

from service.catalog.catalog import Catalog
from service.catalog.versions import Versions
from service.errors import Reason, StreamcellError
from service.servicers.streamcell.bindings import Bindings
from tests import fakes
from tests.fakes import Rig, renamed


class House:
    """Two models, the sessions a, b, c on the first and z on the second, and the bindings of one stream."""

    def __init__(self):
        rigs = [Rig(renamed(fakes.recurrence(), name, "1")) for name in ("first", "second")]
        self.catalog = Catalog(Versions(rig.engine for rig in rigs))
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
    assert [house.bindings.session_of(number)[1] for number in range(3)] == slots
    assert chosen(house.bindings.select_by_number(np.array([2, 0])))[3] == [slots[2], slots[0]]


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
    for function, argument in (
        (house.bindings.session_of, 1),
        (house.bindings.select_by_number, np.array([0, 1])),
    ):
        error = refusal(function, argument)
        assert error.reason is Reason.INVALID_ARGUMENT
        assert "no session has number 1; this stream has bound 1" in error.message


def test_a_session_that_ended_is_known_by_its_generation(house):
    """Its number stays bound to what it was; the slot's next session is not reached by it."""
    house.bindings.bind(["a"])
    engine, slot, generation = house.bindings.session_of(0)
    engine.residents.close(slot)
    house.catalog.open("me", "d", "first")
    assert house.bindings.session_of(0) == (engine, slot, generation)
    assert engine.sessions.generation[slot] != generation
    assert refusal(house.bindings.select_by_number, np.array([0])).reason is Reason.SESSION_NOT_FOUND


def test_a_selection_by_id(house):
    """Slots and generations stand in the order of the ids; those not found are told beside."""
    found = house.bindings.select_by_id(["b", "nobody", "a"])
    missing = {1: Reason.SESSION_NOT_FOUND}
    assert chosen(found) == ("first", 3, [0, 2], *places(house, "b", "a"), missing)


def test_a_selection_of_which_nothing_is_found(house):
    """Is the first one's error."""
    error = refusal(house.bindings.select_by_id, ["nobody", "noone"])
    assert (error.reason, error.metadata) == (Reason.SESSION_NOT_FOUND, {"session_id": "nobody"})


def test_one_model_a_selection(house):
    """Sessions of several models are refused, the models named; by number as well."""
    house.bindings.bind(["a", "z"])
    for function, argument in (
        (house.bindings.select_by_id, ["a", "z"]),
        (house.bindings.select_by_number, np.arange(2)),
    ):
        assert "first/1, second/1" in refusal(function, argument).message


def test_a_session_stands_once(house):
    """Twice in a selection is refused, by id and by number, also when it is bound twice."""
    house.bindings.bind(["a", "a"])
    for function, argument in (
        (house.bindings.select_by_id, ["a", "b", "a"]),
        (house.bindings.select_by_number, np.array([0, 0])),
        (house.bindings.select_by_number, np.array([0, 1])),
    ):
        assert "stands twice" in refusal(function, argument).message


def test_a_selection_of_nothing(house):
    """A frame without sessions on a stream without bindings is refused."""
    error = refusal(house.bindings.select_by_number, np.arange(0))
    assert error.metadata == {"field": "session_ids"}


# -- All that are bound ------------------------------------------------------------------------------


def chosen(selection):
    """Returns what a selection on one engine says, as plain values."""
    (part,) = selection.parts
    return (
        part.engine.name,
        selection.count,
        part.positions.tolist(),
        part.slots.tolist(),
        part.generations.tolist(),
        {at: error.reason for at, error in selection.missing.items()},
    )


def places(house, *session_ids):
    """Returns slots and generations of sessions as they are now."""
    found = [house.catalog.find("me", session_id) for session_id in session_ids]
    return [session.slot for session in found], [session.generation for session in found]


def test_all_that_are_bound_are_what_their_numbers_say(house):
    """Asked for without naming one, they come in the order of their numbers, each time anew."""
    house.bindings.bind(["c", "a"])
    wanted = ("first", 2, [0, 1], *places(house, "c", "a"), {})
    assert [chosen(house.bindings.select_all()) for _ in range(3)] == [wanted] * 3
    assert chosen(house.bindings.select_by_number(np.arange(2))) == wanted


def test_binding_more_changes_what_all_are(house):
    """What was found of them before does not outlive it: not the sessions, and not that each stood once."""
    house.bindings.bind(["c"])
    house.bindings.select_all()
    house.bindings.bind(["a", "b"])
    assert chosen(house.bindings.select_all()) == ("first", 3, [0, 1, 2], *places(house, "c", "a", "b"), {})
    house.bindings.bind(["a"])
    for _ in range(2):
        error = refusal(house.bindings.select_all)
        assert (error.reason, error.metadata) == (Reason.INVALID_ARGUMENT, {"field": "session_raw"})
        assert "stands twice" in error.message


def test_a_binding_that_fails_leaves_all_as_they_were(house):
    """Neither more nor fewer are in the next frame."""
    house.bindings.bind(["c", "a"])
    before = chosen(house.bindings.select_all())
    refusal(house.bindings.bind, ["b", "nobody"])
    refusal(house.bindings.bind, ["b"] * 9)
    assert chosen(house.bindings.select_all()) == before


def test_all_are_on_one_model(house):
    """Once a session of another model is bound all of them can no longer be one frame, nor ever again."""
    house.bindings.bind(["a"])
    assert chosen(house.bindings.select_all())[0] == "first"
    house.bindings.bind(["z"])
    for _ in range(2):
        error = refusal(house.bindings.select_all)
        assert error.metadata == {"field": "session_raw"}
        assert "first/1, second/1" in error.message
    assert house.bindings.session_of(1).engine.name == "second"


def test_all_of_none(house):
    """Nothing bound is refused; what is bound then is found."""
    for _ in range(2):
        assert refusal(house.bindings.select_all).metadata == {"field": "session_ids"}
    house.bindings.bind([])
    assert refusal(house.bindings.select_all).metadata == {"field": "session_ids"}
    house.bindings.bind(["b"])
    assert chosen(house.bindings.select_all()) == ("first", 1, [0], *places(house, "b"), {})


def test_those_that_ended_are_told_beside_the_living(house):
    """Also where they were found before they ended; with none alive the frame is refused."""
    house.bindings.bind(["a", "b", "c"])
    house.bindings.select_all()
    engine = house.bindings.session_of(0).engine
    slots, generations = places(house, "a", "b", "c")
    engine.residents.close(slots[1])
    ended = Reason.SESSION_NOT_FOUND
    wanted = ("first", 3, [0, 2], [slots[0], slots[2]], [generations[0], generations[2]], {1: ended})
    assert [chosen(house.bindings.select_all()) for _ in range(2)] == [wanted] * 2
    engine.residents.close(slots[0])
    engine.residents.close(slots[2])
    assert refusal(house.bindings.select_all).reason is ended


def test_a_slot_used_again_and_bound_again(house):
    """The old number is ended and the new one lives, though both are of one slot."""
    house.bindings.bind(["a", "b"])
    house.bindings.select_all()
    engine, slot, generation = house.bindings.session_of(0)
    engine.residents.close(slot)
    house.catalog.open("me", "d", "first")
    assert places(house, "d") == ([slot], [generation + 1])
    ended = Reason.SESSION_NOT_FOUND
    b = house.bindings.session_of(1).slot
    assert chosen(house.bindings.select_all()) == ("first", 2, [1], [b], [0], {0: ended})
    house.bindings.bind(["d"])
    wanted = ("first", 3, [1, 2], [b, slot], [0, generation + 1], {0: ended})
    assert [chosen(house.bindings.select_all()) for _ in range(2)] == [wanted] * 2


def test_the_same_slot_on_two_models_is_no_session_twice(house):
    """Slots count within a model: a and z have the same one, and each is refused or found for itself."""
    (a,), _ = places(house, "a")
    (z,), _ = places(house, "z")
    assert a == z
    house.bindings.bind(["z", "a"])
    assert "one model a frame" in refusal(house.bindings.select_all).message
    assert chosen(house.bindings.select_by_number(np.array([0])))[0] == "second"
    assert chosen(house.bindings.select_by_number(np.array([1])))[0] == "first"
