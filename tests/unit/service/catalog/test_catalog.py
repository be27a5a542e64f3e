"""The catalog: which model a name means, whose a session is, and the end of a draining server."""

import pytest

from service.catalog.catalog import Catalog, is_missing
from service.catalog.versions import Versions
from service.errors import Reason, StreamcellError
from tests import fakes
from tests.fakes import Rig, renamed


def catalog_of(*models, **changes):
    """Returns a catalog of engines, one for each (name, version)."""
    engines = [Rig(renamed(fakes.recurrence(), *model), **changes).engine for model in models]
    return Catalog(Versions(engines))


def refusal(function, *args):
    """Returns the error that a call raises."""
    with pytest.raises(StreamcellError) as caught:
        function(*args)
    return caught.value


def name_of(engine):
    """Returns NAME/VERSION."""
    return f"{engine.name}/{engine.version}"


MANY = [("b", "2"), ("a", "9"), ("a", "10"), ("a", "beta"), ("a", "010x")]


@pytest.mark.parametrize("order", [MANY, MANY[::-1]], ids=["one order", "the other"])
def test_versions_order_as_numbers_and_words_come_first(order):
    """10 is newer than 9, any number is newer than any word, whatever order they are found in."""
    catalog = catalog_of(*order)
    assert [name_of(engine) for engine in catalog.versions.engines] == [
        "a/010x",
        "a/beta",
        "a/9",
        "a/10",
        "b/2",
    ]
    assert name_of(catalog.versions.choose("a")) == "a/10"


@pytest.mark.parametrize("model", ["a/9", "a/beta", "b/2", "b"])
def test_names_with_and_without_version(model):
    """NAME/VERSION is that very one, NAME its newest."""
    assert name_of(catalog_of(*MANY).versions.choose(model)).startswith(model)


def test_no_name_means_the_only_model():
    """Where one model is served, in however many versions, the name may be left out."""
    assert name_of(catalog_of(("a", "1"), ("a", "2")).versions.choose("")) == "a/2"


def test_no_name_is_an_error_where_several_are_served():
    """The field and the names to choose from are told."""
    error = refusal(catalog_of(*MANY).versions.choose, "")
    assert (error.reason, error.metadata["field"]) == (Reason.INVALID_ARGUMENT, "model")
    assert "a, b" in error.message


@pytest.mark.parametrize("model", ["c", "a/11", "a/", "/", "A"])
def test_a_model_that_is_not_served(model):
    """It is named, with those that are."""
    error = refusal(catalog_of(*MANY).versions.choose, model)
    assert (error.reason, error.metadata) == (Reason.MODEL_NOT_FOUND, {"model": model})
    assert "a/10" in error.message


def test_a_session_is_found_on_the_model_it_was_opened_on():
    """Each of several models has sessions of its own; ids are unique among all."""
    catalog = catalog_of(("a", "1"), ("b", "1"))
    session = catalog.open("", "s", "b")
    assert name_of(session.engine) == "b/1"
    assert catalog.find("", "s") == session
    assert session.session_id == "s"
    assert refusal(catalog.open, "", "s", "a").reason is Reason.SESSION_EXISTS
    assert len(catalog.versions.choose("a").sessions) == 0


def test_principals_are_isolated():
    """The same id is another session to another principal, and one of theirs is not found."""
    catalog = catalog_of(("a", "1"))
    session = catalog.open("alice", "s", "")
    other = catalog.open("bob", "s", "")
    assert session.slot != other.slot
    assert catalog.find("alice", "s") == session
    catalog.open("alice", "hers", "")
    for principal in ("bob", "", "alice\0", "ali"):
        assert refusal(catalog.find, principal, "hers").reason is Reason.SESSION_NOT_FOUND


def test_no_id_reaches_into_another_principals_sessions():
    """Whatever an id holds, it names a session of its own principal's."""
    catalog = catalog_of(("a", "1"))
    catalog.open("alice", "s", "")
    for principal, session_id in (("", "alice\0s"), ("", "\0alice\0s"), ("ali", "ce\0s")):
        assert refusal(catalog.find, principal, session_id).reason is Reason.SESSION_NOT_FOUND


@pytest.mark.parametrize("session_id", ["a b", "a\nb", "ü", "\0", "x" * 129, "\x7f"])
def test_ids_are_short_printable_ascii(session_id):
    """Another id is refused by the field's name and nothing is opened."""
    catalog = catalog_of(("a", "1"))
    error = refusal(catalog.open, "", session_id, "")
    assert (error.reason, error.metadata["field"]) == (Reason.INVALID_ARGUMENT, "session_id")
    assert len(catalog.versions.engines[0].sessions) == 0


def test_ids_at_their_bounds():
    """One character and 128 are fine."""
    catalog = catalog_of(("a", "1"))
    catalog.open("", "~", "")
    catalog.open("", "!" * 128, "")


def test_an_empty_id_is_replaced_by_a_random_one():
    """Two sessions opened without an id have two."""
    catalog = catalog_of(("a", "1"))
    ids = {catalog.open("", "", "").session_id for _ in range(2)}
    assert len(ids) == 2
    for session_id in ids:
        catalog.find("", session_id)
    assert refusal(catalog.find, "", "").metadata["field"] == "session_id"


def test_an_expired_session_is_told_apart_from_an_unknown_one():
    """To its own principal alone."""
    catalog = catalog_of(("a", "1"))
    (engine,) = catalog.versions.engines
    engine.residents.expire(catalog.open("alice", "s", "").slot)
    assert refusal(catalog.find, "alice", "s").reason is Reason.SESSION_EXPIRED
    assert refusal(catalog.find, "bob", "s").reason is Reason.SESSION_NOT_FOUND
    assert is_missing(refusal(catalog.find, "alice", "s"))
    assert is_missing(refusal(catalog.find, "bob", "s"))


def test_a_full_model_says_so():
    """The bound is per model: another model has room."""
    catalog = catalog_of(("a", "1"), ("b", "1"), max_resident_sessions=1)
    catalog.open("", "s", "a")
    error = refusal(catalog.open, "", "t", "a")
    assert error.reason is Reason.SESSIONS_FULL
    assert not is_missing(error)
    catalog.open("", "t", "b")


def test_a_request_may_name_the_model_its_session_runs_on():
    """With its version or without; another one is MODEL_CHANGED."""
    catalog = catalog_of(("a", "1"), ("a", "2"), ("b", "1"))
    engine = catalog.open("", "s", "a/1").engine
    for model in ("", "a", "a/1"):
        catalog.check_model(engine, "s", model)
    for model in ("a/2", "b", "c"):
        error = refusal(catalog.check_model, engine, "s", model)
        assert (error.reason, error.metadata["model"]) == (Reason.MODEL_CHANGED, "a/1")


def test_a_draining_server_finds_and_opens_nothing():
    """Both are DRAINING, also for sessions that are there, so that clients go elsewhere."""
    catalog = catalog_of(("a", "1"))
    catalog.open("", "s", "")
    catalog.is_draining = True
    assert refusal(catalog.find, "", "s").reason is Reason.DRAINING
    assert refusal(catalog.find, "", "unknown").reason is Reason.DRAINING
    assert refusal(catalog.open, "", "t", "").reason is Reason.DRAINING
