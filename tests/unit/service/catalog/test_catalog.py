"""The catalog: which model a name means, which session an id means, and the end of a draining server."""

import dataclasses

import pytest

from service.accounts import number_of
from service.catalog.catalog import Catalog, is_missing
from service.catalog.versions import Versions
from service.errors import Reason, StreamcellError
from tests import fakes
from tests.fakes import Rig, renamed

MANY = [("b", "2"), ("a", "9"), ("a", "10"), ("a", "beta"), ("a", "010x")]


def catalog_of(*models, **changes):
    """Returns a catalog of engines, one for each (name, version)."""
    engines = [Rig(renamed(fakes.recurrence(), *model), **changes).engine for model in models]
    return Catalog(Versions(engines))


def refusal_of(function, *args):
    """Returns the error that a call raises."""
    with pytest.raises(StreamcellError) as caught:
        function(*args)
    return caught.value


def name_of(engine):
    """Returns "NAME/VERSION" of an engine."""
    return f"{engine.name}/{engine.version}"


class TestModels:
    """Names of models, with and without a version."""

    @pytest.mark.parametrize("order", [MANY, MANY[::-1]], ids=["one order", "the other"])
    def test_versions_order_as_numbers_after_words(self, order):
        """10 is newer than 9, and any number is newer than any word, in whatever order they are found."""
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
    def test_a_name_may_have_a_version(self, model):
        """NAME/VERSION means that version, NAME the newest one."""
        assert name_of(catalog_of(*MANY).versions.choose(model)).startswith(model)

    def test_no_name_means_the_only_model(self):
        """A client may leave the name out where one model is served, in any number of versions."""
        assert name_of(catalog_of(("a", "1"), ("a", "2")).versions.choose("")) == "a/2"

    def test_no_name_is_an_error_where_several_are_served(self):
        """The error names the field and the names to choose from."""
        error = refusal_of(catalog_of(*MANY).versions.choose, "")
        assert (error.reason, error.metadata["field"]) == (Reason.INVALID_ARGUMENT, "model")
        assert "a, b" in error.message

    @pytest.mark.parametrize("model", ["c", "a/11", "a/", "/", "A"])
    def test_a_model_that_is_not_served_is_an_error(self, model):
        """The error names the model, and the models that are served."""
        error = refusal_of(catalog_of(*MANY).versions.choose, model)
        assert (error.reason, error.metadata) == (Reason.MODEL_NOT_FOUND, {"model": model})
        assert "a/10" in error.message

    def test_a_request_may_name_the_model_of_its_session(self):
        """With its version or without; another model is MODEL_CHANGED."""
        catalog = catalog_of(("a", "1"), ("a", "2"), ("b", "1"))
        engine = catalog.open("", "s", "a/1").engine
        for model in ("", "a", "a/1"):
            catalog.check_model(engine, "s", model)
        for model in ("a/2", "b", "c"):
            error = refusal_of(catalog.check_model, engine, "s", model)
            assert (error.reason, error.metadata["model"]) == (Reason.MODEL_CHANGED, "a/1")

    async def test_a_snapshot_whose_name_contains_a_version_is_not_served(self):
        """Though sessions migrate, and NAME/VERSION means an engine of an equal layout."""
        engine = Rig(renamed(fakes.recurrence(), "a", "2")).engine
        versions = Versions([engine], migrates=True)
        model = dataclasses.replace(engine.model, name="a/2", version="1")
        with pytest.raises(StreamcellError) as caught:
            await versions.engine_of(model)
        assert caught.value.reason is Reason.MODEL_NOT_FOUND


class TestSessions:
    """Sessions by principal and id."""

    def test_a_session_is_found_on_its_model(self):
        """Each model has sessions of its own; an id is unique among all models."""
        catalog = catalog_of(("a", "1"), ("b", "1"))
        session = catalog.open("", "s", "b")
        assert name_of(session.engine) == "b/1"
        assert catalog.find("", "s") == session
        assert session.session_id == "s"
        assert refusal_of(catalog.open, "", "s", "a").reason is Reason.SESSION_EXISTS
        assert len(catalog.versions.choose("a").sessions) == 0

    def test_principals_are_isolated(self):
        """An id is another session to another principal, and no principal finds another one's session."""
        catalog = catalog_of(("a", "1"))
        session = catalog.open("alice", "s", "")
        other = catalog.open("bob", "s", "")
        assert session.slot != other.slot
        assert catalog.find("alice", "s") == session
        catalog.open("alice", "hers", "")
        for principal in ("bob", "", "alice\0", "ali"):
            assert refusal_of(catalog.find, principal, "hers").reason is Reason.SESSION_NOT_FOUND

    def test_an_id_never_reaches_the_sessions_of_another_principal(self):
        """Not even an id that contains the separator of principal and id."""
        catalog = catalog_of(("a", "1"))
        catalog.open("alice", "s", "")
        for principal, session_id in (("", "alice\0s"), ("", "\0alice\0s"), ("ali", "ce\0s")):
            assert refusal_of(catalog.find, principal, session_id).reason is Reason.SESSION_NOT_FOUND

    def test_an_expired_session_is_not_an_unknown_one(self):
        """SESSION_EXPIRED for its own principal, SESSION_NOT_FOUND for any other."""
        catalog = catalog_of(("a", "1"))
        (engine,) = catalog.versions.engines
        engine.residents.expire(catalog.open("alice", "s", "").slot)
        assert refusal_of(catalog.find, "alice", "s").reason is Reason.SESSION_EXPIRED
        assert refusal_of(catalog.find, "bob", "s").reason is Reason.SESSION_NOT_FOUND
        assert is_missing(refusal_of(catalog.find, "alice", "s"))
        assert is_missing(refusal_of(catalog.find, "bob", "s"))

    def test_a_full_model_refuses_a_session(self):
        """The bound is per model: another model has room."""
        catalog = catalog_of(("a", "1"), ("b", "1"), max_resident_sessions=1)
        catalog.open("", "s", "a")
        error = refusal_of(catalog.open, "", "t", "a")
        assert error.reason is Reason.SESSIONS_FULL
        assert not is_missing(error)
        catalog.open("", "t", "b")

    def test_a_draining_server_finds_and_opens_nothing(self):
        """DRAINING, also for sessions that are there, so that clients go to another server."""
        catalog = catalog_of(("a", "1"))
        catalog.open("", "s", "")
        catalog.is_draining = True
        assert refusal_of(catalog.find, "", "s").reason is Reason.DRAINING
        assert refusal_of(catalog.find, "", "unknown").reason is Reason.DRAINING
        assert refusal_of(catalog.open, "", "t", "").reason is Reason.DRAINING


class TestIds:
    """What a session's id may be."""

    @pytest.mark.parametrize("session_id", ["a b", "a\nb", "ü", "\0", "x" * 129, "\x7f"])
    def test_ids_are_short_printable_ascii(self, session_id):
        """Any other id is refused by the field's name, and no session is opened."""
        catalog = catalog_of(("a", "1"))
        error = refusal_of(catalog.open, "", session_id, "")
        assert (error.reason, error.metadata["field"]) == (Reason.INVALID_ARGUMENT, "session_id")
        assert len(catalog.versions.engines[0].sessions) == 0

    def test_ids_of_1_and_of_128_characters_are_accepted(self):
        """So are the first and the last printable character."""
        catalog = catalog_of(("a", "1"))
        catalog.open("", "~", "")
        catalog.open("", "!" * 128, "")

    def test_an_empty_id_is_replaced_by_a_random_one(self):
        """Two sessions opened without an id have different ids."""
        catalog = catalog_of(("a", "1"))
        ids = {catalog.open("", "", "").session_id for _ in range(2)}
        assert len(ids) == 2
        for session_id in ids:
            catalog.find("", session_id)
        assert refusal_of(catalog.find, "", "").metadata["field"] == "session_id"


class TestQuota:
    """How many sessions one principal may open."""

    def test_a_principal_opens_so_many_sessions_and_no_more(self):
        """Over all models together; another principal's are counted apart, and a closed one makes room."""
        engines = [Rig(renamed(fakes.recurrence(), name, "1")).engine for name in ("m", "n")]
        catalog = Catalog(Versions(engines), principal_max_sessions=2)
        first = catalog.open("alice", "a", "m")
        catalog.open("alice", "b", "n")
        error = refusal_of(catalog.open, "alice", "c", "m")
        assert (error.reason, error.metadata, error.retry_delay_seconds) == (
            Reason.QUOTA_EXCEEDED,
            {"limit": "sessions"},
            1.0,
        )
        assert "2 sessions are in memory" in error.message
        assert refusal_of(catalog.open, "alice", "a", "m").reason is Reason.SESSION_EXISTS
        catalog.open("bob", "a", "m")
        first.engine.residents.close(first.slot)
        catalog.open("alice", "c", "m")

    def test_each_way_out_of_memory_gives_the_room_back(self):
        """Closed, expired, fenced, evicted, handed over: the count follows the sessions."""
        engine = Rig().engine
        residents, sessions = engine.residents, engine.sessions
        ways = (residents.close, residents.expire, residents.fence, residents.evict, residents.hand_over)
        for leave in ways:
            slot = residents.open("alice\0a")
            assert sessions.num_of(number_of("alice")) == 1
            leave(slot)
            assert sessions.num_of(number_of("alice")) == 0
