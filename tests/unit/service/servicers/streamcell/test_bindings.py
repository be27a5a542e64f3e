"""Bindings: the sessions that one stream knows by number."""

import numpy as np
import pytest

from service.catalog.catalog import Catalog
from service.catalog.versions import Versions
from service.errors import Reason, StreamcellError
from service.servicers.streamcell.bindings import Bindings
from tests import fakes
from tests.fakes import Rig, renamed


@pytest.fixture
def catalog():
    """The sessions a, b, c on the model `first`, and z on the model `second`."""
    rigs = [Rig(renamed(fakes.recurrence(), name, "1")) for name in ("first", "second")]
    catalog = Catalog(Versions(rig.engine for rig in rigs))
    for session_id in "abc":
        catalog.open("me", session_id, "first")
    catalog.open("me", "z", "second")
    return catalog


@pytest.fixture
def bindings(catalog):
    """The bindings of one stream, five at most."""
    return Bindings(catalog, "me", 5)


def refusal(function, *args):
    """Returns the error that a call raises."""
    with pytest.raises(StreamcellError) as caught:
        function(*args)
    return caught.value


def chosen(selection):
    """Returns the contents of a selection on one engine as plain values."""
    (part,) = selection.parts
    return (
        part.engine.name,
        selection.count,
        part.positions.tolist(),
        part.slots.tolist(),
        part.generations.tolist(),
        {at: error.reason for at, error in selection.missing.items()},
    )


def places(catalog, *session_ids):
    """Returns the slots and the generations of open sessions."""
    found = [catalog.find("me", session_id) for session_id in session_ids]
    return [session.slot for session in found], [session.generation for session in found]


class TestBind:
    """Sessions get numbers."""

    def test_sessions_get_the_next_numbers_in_order(self, catalog, bindings):
        """A second call continues the numbers of the first."""
        bindings.bind(["c", "a"])
        bindings.bind(["b"])
        assert len(bindings) == 3
        slots = [catalog.find("me", session_id)[1] for session_id in "cab"]
        assert [bindings.session_of(number)[1] for number in range(3)] == slots
        assert chosen(bindings.select_by_number(np.array([2, 0])))[3] == [slots[2], slots[0]]

    def test_all_or_none_are_bound(self, catalog, bindings):
        """If one session is not open, or belongs to another principal, no session is bound."""
        assert refusal(bindings.bind, ["a", "nobody"]).reason is Reason.SESSION_NOT_FOUND
        assert len(bindings) == 0
        of_another = Bindings(catalog, "another", 5)
        assert refusal(of_another.bind, ["a"]).reason is Reason.SESSION_NOT_FOUND

    def test_the_number_of_bindings_is_bounded(self, bindings):
        """A stream binds as many sessions as the server allows, over any number of calls."""
        bindings.bind(["a", "b", "c"])
        error = refusal(bindings.bind, ["a", "b", "c"])
        assert error.metadata == {"field": "session_ids"}
        bindings.bind(["a", "b"])
        assert len(bindings) == 5


class TestOneSession:
    """A session by its number."""

    def test_a_number_that_is_not_bound_is_refused(self, bindings):
        """The error has the number and how many sessions are bound."""
        bindings.bind(["a"])
        for function, argument in (
            (bindings.session_of, 1),
            (bindings.select_by_number, np.array([0, 1])),
        ):
            error = refusal(function, argument)
            assert error.reason is Reason.INVALID_ARGUMENT
            assert "no session has number 1; this stream has bound 1" in error.message

    def test_a_number_stays_with_a_session_that_ended(self, catalog, bindings):
        """The number does not reach the session that has the slot next."""
        bindings.bind(["a"])
        engine, slot, generation = bindings.session_of(0)
        engine.residents.close(slot)
        catalog.open("me", "d", "first")
        assert bindings.session_of(0) == (engine, slot, generation)
        assert engine.sessions.generation[slot] != generation
        assert refusal(bindings.select_by_number, np.array([0])).reason is Reason.SESSION_NOT_FOUND


class TestSelectById:
    """The sessions of a frame, by id."""

    def test_sessions_come_in_the_order_of_the_ids(self, catalog, bindings):
        """Sessions that are not found are in `missing`."""
        found = bindings.select_by_id(["b", "nobody", "a"])
        missing = {1: Reason.SESSION_NOT_FOUND}
        assert chosen(found) == ("first", 3, [0, 2], *places(catalog, "b", "a"), missing)

    def test_if_no_session_is_found_the_first_error_is_raised(self, bindings):
        """The error is the one of the first id."""
        error = refusal(bindings.select_by_id, ["nobody", "noone"])
        assert (error.reason, error.metadata) == (Reason.SESSION_NOT_FOUND, {"session_id": "nobody"})


class TestSelect:
    """What holds for a frame's sessions by id and by number."""

    def test_sessions_of_several_models_are_refused(self, bindings):
        """The error names the models."""
        bindings.bind(["a", "z"])
        for function, argument in (
            (bindings.select_by_id, ["a", "z"]),
            (bindings.select_by_number, np.arange(2)),
        ):
            assert "first/1, second/1" in refusal(function, argument).message

    def test_a_session_that_stands_twice_is_refused(self, bindings):
        """By id and by number, and also if the session is bound under two numbers."""
        bindings.bind(["a", "a"])
        for function, argument in (
            (bindings.select_by_id, ["a", "b", "a"]),
            (bindings.select_by_number, np.array([0, 0])),
            (bindings.select_by_number, np.array([0, 1])),
        ):
            assert "stands twice" in refusal(function, argument).message

    def test_a_frame_without_sessions_is_refused(self, bindings):
        """A frame that names no session needs bound sessions."""
        error = refusal(bindings.select_by_number, np.arange(0))
        assert error.metadata == {"field": "session_ids"}

    def test_the_same_slot_on_two_models_is_no_session_twice(self, catalog, bindings):
        """Slots count within a model: a and z have the same slot and are two sessions."""
        (a,), _ = places(catalog, "a")
        (z,), _ = places(catalog, "z")
        assert a == z
        bindings.bind(["z", "a"])
        assert "one model a frame" in refusal(bindings.select_all).message
        assert chosen(bindings.select_by_number(np.array([0])))[0] == "second"
        assert chosen(bindings.select_by_number(np.array([1])))[0] == "first"


class TestSelectAll:
    """All bound sessions, as a frame that names none has them."""

    def test_sessions_come_in_the_order_of_their_numbers(self, catalog, bindings):
        """Each call returns the same as a selection by every number."""
        bindings.bind(["c", "a"])
        wanted = ("first", 2, [0, 1], *places(catalog, "c", "a"), {})
        assert [chosen(bindings.select_all()) for _ in range(3)] == [wanted] * 3
        assert chosen(bindings.select_by_number(np.arange(2))) == wanted

    def test_sessions_bound_later_are_selected(self, catalog, bindings):
        """A new binding renews what an earlier call found: the sessions, and that each stands once."""
        bindings.bind(["c"])
        bindings.select_all()
        bindings.bind(["a", "b"])
        assert chosen(bindings.select_all()) == ("first", 3, [0, 1, 2], *places(catalog, "c", "a", "b"), {})
        bindings.bind(["a"])
        for _ in range(2):
            error = refusal(bindings.select_all)
            assert (error.reason, error.metadata) == (Reason.INVALID_ARGUMENT, {"field": "session_raw"})
            assert "stands twice" in error.message

    def test_a_binding_that_fails_changes_nothing(self, bindings):
        """The next frame has the same sessions as before."""
        bindings.bind(["c", "a"])
        before = chosen(bindings.select_all())
        refusal(bindings.bind, ["b", "nobody"])
        refusal(bindings.bind, ["b"] * 9)
        assert chosen(bindings.select_all()) == before

    def test_a_session_of_another_model_makes_all_refused(self, bindings):
        """From then on every selection of all is refused, and each session can still be used by number."""
        bindings.bind(["a"])
        assert chosen(bindings.select_all())[0] == "first"
        bindings.bind(["z"])
        for _ in range(2):
            error = refusal(bindings.select_all)
            assert error.metadata == {"field": "session_raw"}
            assert "first/1, second/1" in error.message
        assert bindings.session_of(1).engine.name == "second"

    def test_nothing_bound_is_refused(self, catalog, bindings):
        """A session bound afterwards is selected."""
        for _ in range(2):
            assert refusal(bindings.select_all).metadata == {"field": "session_ids"}
        bindings.bind([])
        assert refusal(bindings.select_all).metadata == {"field": "session_ids"}
        bindings.bind(["b"])
        assert chosen(bindings.select_all()) == ("first", 1, [0], *places(catalog, "b"), {})

    def test_ended_sessions_are_missing(self, catalog, bindings):
        """Also if an earlier call found them live; if every session has ended the frame is refused."""
        bindings.bind(["a", "b", "c"])
        bindings.select_all()
        engine = bindings.session_of(0).engine
        slots, generations = places(catalog, "a", "b", "c")
        engine.residents.close(slots[1])
        ended = Reason.SESSION_NOT_FOUND
        wanted = ("first", 3, [0, 2], [slots[0], slots[2]], [generations[0], generations[2]], {1: ended})
        assert [chosen(bindings.select_all()) for _ in range(2)] == [wanted] * 2
        engine.residents.close(slots[0])
        engine.residents.close(slots[2])
        assert refusal(bindings.select_all).reason is ended

    def test_a_reused_slot_may_be_bound_under_two_numbers(self, catalog, bindings):
        """The old number's session has ended and the new number's session is live."""
        bindings.bind(["a", "b"])
        bindings.select_all()
        engine, slot, generation = bindings.session_of(0)
        engine.residents.close(slot)
        catalog.open("me", "d", "first")
        assert places(catalog, "d") == ([slot], [generation + 1])
        ended = Reason.SESSION_NOT_FOUND
        b = bindings.session_of(1).slot
        assert chosen(bindings.select_all()) == ("first", 2, [1], [b], [0], {0: ended})
        bindings.bind(["d"])
        wanted = ("first", 3, [1, 2], [b, slot], [0, generation + 1], {0: ended})
        assert [chosen(bindings.select_all()) for _ in range(2)] == [wanted] * 2
