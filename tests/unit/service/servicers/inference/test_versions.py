"""The Open Inference Protocol while versions come and go: sequences run on, and steps on their own."""

import shutil
import weakref

import numpy as np
import pytest
from streamcell.inference import open_inference_pb2 as pb
from streamcell.v1 import streamcell_pb2 as api

from tests.fake_store import FakeStore
from tests.fakes import next_message
from tests.folder_of_models import NAME, X, until
from tests.inference import SERVICE, infer, y_of

INFER = f"{SERVICE}/ModelInfer"
DEEP = np.concatenate([X, X[:, :1] + 1], axis=1)  # for a version that takes one input more


def request_of(row, sequence=7, version="", x=None, **parameters):
    """Returns a request of one row of X, or of `x`."""
    parameters = {"sequence_id": sequence, **parameters} if sequence else parameters
    request = infer([X[row]] if x is None else x, **parameters)
    request.model_version = version
    return request


class Unary:
    """Asks by ModelInfer."""

    def __init__(self, house):
        self.house = house

    async def ask(self, *args, **options):
        """Returns a response."""
        return await self.house.served.ask(INFER, request_of(*args, **options))


class Streamed:
    """Asks by ModelStreamInfer."""

    def __init__(self, house):
        self.stream = house.served.stream(f"{SERVICE}/ModelStreamInfer")

    async def ask(self, *args, **options):
        """Returns a response."""
        self.stream.receive(request_of(*args, **options).SerializeToString())
        response = pb.ModelStreamInferResponse.FromString(await next_message(self.stream))
        assert not response.error_message, response
        return response.infer_response


@pytest.fixture(params=[Unary, Streamed])
def way(request):
    """Each test that asks for it asks by either method."""
    return request.param


def told_by(response):
    """Returns the version and the prediction's bytes."""
    return response.model_version, y_of(response).tobytes()


@pytest.mark.parametrize("store", [False, True])
async def test_a_sequence_runs_on_on_the_version_on_which_it_began(serve_folder, way, store):
    """Though its requests name none; a new one, and steps on their own, are for the new version."""
    house = await serve_folder(store=FakeStore() if store else None)
    asks = way(house)
    old, new = house.alone("1"), house.alone("2")
    assert told_by(await asks.ask(0, sequence_start=True)) == ("1", old.step(X[0]))
    assert told_by(await asks.ask(0, sequence=0)) == ("1", house.alone("1").step(X[0]))
    await house.notice("2")
    for row in (1, 2):
        assert told_by(await asks.ask(row)) == ("1", old.step(X[row]))
        assert told_by(await asks.ask(row, sequence=0)) == ("2", house.alone("2").step(X[row]))
    assert told_by(await asks.ask(0, sequence=8, sequence_start=True)) == ("2", new.step(X[0]))
    assert told_by(await asks.ask(3, sequence_end=True)) == ("1", old.step(X[3]))
    house.retire()
    assert house.statuses() == {f"{NAME}/2": "SERVING"}
    assert told_by(await asks.ask(0, sequence_start=True)) == ("2", house.alone("2").step(X[0]))
    assert told_by(await asks.ask(1, sequence=8)) == ("2", new.step(X[1]))
    assert told_by(await asks.ask(5, sequence=0)) == ("2", house.alone("2").step(X[5]))


@pytest.mark.parametrize("version", ["", "1"])
async def test_sequences_migrate(serve_folder, way, version):
    """Whether their requests name the version on which they began or none."""
    house = await serve_folder(on_new_version="migrate")
    asks = way(house)
    old, new = house.alone("1"), house.alone("2")
    assert told_by(await asks.ask(0, version=version, sequence_start=True)) == ("1", old.step(X[0]))
    await house.notice("2")
    new.state = old.state
    assert told_by(await asks.ask(1, version=version)) == ("2", new.step(X[1]))
    house.retire()
    assert house.statuses() == {f"{NAME}/2": "SERVING"}
    assert told_by(await asks.ask(2, version=version)) == ("2", new.step(X[2]))
    assert told_by(await asks.ask(3, version=version, sequence_end=True)) == ("2", new.step(X[3]))
    assert house.statuses() == {f"{NAME}/2": "SERVING"}


async def test_requests_under_way_when_a_sequence_moves(serve_folder):
    """Those that come later wait for them; order and indexes are as ever."""
    house = await serve_folder(on_new_version="migrate")
    await house.notice("2")
    engine = house.catalog.versions.get(f"{NAME}/1")
    engine.resume()
    house.catalog.versions.lead(engine)
    stream = house.served.stream(f"{SERVICE}/ModelStreamInfer")
    requests = [request_of(row, sequence_start=row == 0, sequence_end=row == 5) for row in range(6)]
    for request in requests[:3]:
        stream.receive(request.SerializeToString())
    house.catalog.versions.lead(house.catalog.versions.get(f"{NAME}/2"))
    for request in requests[3:]:
        stream.receive(request.SerializeToString())
    found = [
        pb.ModelStreamInferResponse.FromString(await next_message(stream)).infer_response for _ in requests
    ]
    old, new = house.alone("1"), house.alone("2")
    expected = [("1", old.step(X[row])) for row in range(3)]
    new.state = old.state
    expected += [("2", new.step(X[row])) for row in range(3, 6)]
    assert [told_by(each) for each in found] == expected
    assert [each.parameters["step_index"].int64_param for each in found] == list(range(6))


async def test_a_version_that_left_comes_back_when_a_request_names_it(serve_folder, way):
    """Ready, described, and run; what comes after it on the stream keeps its place."""
    house = await serve_folder()
    await house.notice("2")
    house.retire()
    about = {"name": NAME, "version": "1"}
    assert (await house.served.ask(f"{SERVICE}/ModelReady", pb.ModelReadyRequest(**about))).ready
    assert house.statuses() == {f"{NAME}/2": "SERVING"}
    asks = way(house)
    alone = house.alone("1")
    assert told_by(await asks.ask(0, version="1", sequence_start=True)) == ("1", alone.step(X[0]))
    assert told_by(await asks.ask(1, version="1", sequence_end=True)) == ("1", alone.step(X[1]))
    house.retire()
    found = await house.served.ask(f"{SERVICE}/ModelMetadata", pb.ModelMetadataRequest(**about))
    assert found.versions == ["1"]
    house.retire()
    shutil.rmtree(house.path / NAME / "1")
    await house.models.look()
    refusal = await house.served.refused(INFER, request_of(0, version="1", sequence_start=True))
    assert refusal.reason == "MODEL_NOT_FOUND"


async def test_what_follows_a_request_that_waits_for_its_model_keeps_its_place(serve_folder):
    """On its stream; a client that was done meanwhile hears all answers, one that went away none."""
    house = await serve_folder()
    await house.notice("2")
    house.retire()
    for is_gone in (False, True):
        stream = house.served.stream(f"{SERVICE}/ModelStreamInfer")
        for row in range(3):
            request = request_of(row, version="1", sequence_start=row == 0, sequence_end=row == 2)
            stream.receive(request.SerializeToString())
        assert stream.is_full
        if is_gone:
            stream.conversation.cancel()
            break
        stream.half_close()
        alone = house.alone("1")
        for row in range(3):
            response = pb.ModelStreamInferResponse.FromString(await next_message(stream)).infer_response
            assert told_by(response) == ("1", alone.step(X[row]))
        assert await next_message(stream) is None
        house.retire()
        assert house.statuses() == {f"{NAME}/2": "SERVING"}


async def test_several_steps_of_a_request_run_on_one_version(serve_folder):
    """A request is applied as a whole on the version that its sequence is on when its turn comes."""
    house = await serve_folder(on_new_version="migrate")
    first = infer(X[None, :3], sequence_id=7, sequence_start=True)
    old = house.alone("1")
    assert y_of(await house.served.ask(INFER, first)).tobytes() == old.fold(X[:3])
    await house.notice("2")
    new = house.alone("2")
    new.state = old.state
    found = await house.served.ask(INFER, infer(X[None, 3:6], sequence_id=7))
    assert (found.model_version, y_of(found).tobytes()) == ("2", new.fold(X[3:6]))
    index = house.served.ask(f"{SERVICE}/RepositoryIndex", pb.RepositoryIndexRequest())
    assert np.all([each.state == "READY" for each in (await index).models])


async def test_a_version_that_leaves_is_kept_by_nobody(serve_folder, way):
    """Neither by what was read of its sequences nor by what they were answered: its memory is free."""
    house = await serve_folder()
    asks = way(house)
    for row in range(3):
        await asks.ask(row, sequence_start=row == 0)
    await house.notice("2")
    for row in range(3, 6):
        assert (await asks.ask(row, sequence_end=row == 5)).model_version == "1"
    gone = weakref.ref(house.catalog.versions.get(f"{NAME}/1"))
    await house.check_unloaded(gone)


async def test_another_artifact_of_a_version_that_left(serve_folder, way):
    """Its predictions are as many as it has, whatever the one before it gave."""
    house = await serve_folder()
    asks = way(house)
    first = await asks.ask(0, version="1", sequence_start=True, sequence_end=True)
    assert told_by(first) == ("1", house.alone("1").step(X[0]))
    await house.notice("2")
    house.retire()
    shutil.rmtree(house.path / NAME / "1")
    await house.models.look()
    house.put("1", "more outputs")
    await house.models.look(are_complete=True)
    found = await asks.ask(0, version="1", sequence_start=True)
    assert y_of(found).shape == (1, 3)
    assert told_by(found) == ("1", house.alone("1", "more outputs").step(X[0]))


async def test_answers_of_a_durable_sequence_that_moves_keep_their_order(serve_folder):
    """Though the store tells of a later step first, and the sequence is on another version by then."""
    house = await serve_folder(store=FakeStore(), on_new_version="migrate")
    opened = api.OpenSessionRequest(session_id=f"inference:{NAME}:int:7", model=NAME, durable=True)
    await house.served.ask("OpenSession", opened)
    told = []
    old = house.catalog.versions.get(NAME)
    old.answers.when_stored = lambda slots, then: told.append(then)
    stream = house.served.stream(f"{SERVICE}/ModelStreamInfer")
    for row in range(2):
        stream.receive(request_of(row).SerializeToString())
    await until(lambda: len(told) == 2)
    await house.notice("2")
    house.retire()
    assert not len(old.sessions)
    for then in reversed(told):
        then(None)
    for index in range(2):
        response = pb.ModelStreamInferResponse.FromString(await next_message(stream)).infer_response
        assert response.parameters["step_index"].int64_param == index


@pytest.mark.parametrize("made", ["more inputs", "more outputs"])
@pytest.mark.parametrize("num_steps", [1, 3])
async def test_a_version_of_other_widths_leads(serve_folder, way, made, num_steps):
    """A sequence runs on where it began, in the rows and with the predictions of that version."""
    house = await serve_folder()
    asks = way(house)
    old, new = house.alone("1"), house.alone("2", made)
    rows = DEEP if made == "more inputs" else X
    first = await asks.ask(None, x=X[None, :2], sequence_start=True)
    assert told_by(first) == ("1", old.fold(X[:2]))
    await house.notice("2", made)
    for at in (2, 2 + num_steps):
        part = slice(at, at + num_steps)
        assert told_by(await asks.ask(None, x=X[None, part])) == ("1", old.fold(X[part]))
    anew = await asks.ask(None, 8, x=rows[None, :num_steps], sequence_start=True)
    assert told_by(anew) == ("2", new.fold(rows[:num_steps]))
    await asks.ask(9, sequence_end=True)
    assert told_by(await asks.ask(None, 8, x=rows[9:10])) == ("2", new.step(rows[9]))
    anew = await asks.ask(None, x=rows[:1], sequence_start=True)
    assert told_by(anew) == ("2", house.alone("2", made).step(rows[0]))


async def test_a_sequence_ends_and_begins_on_a_version_of_another_width_at_once(serve_folder):
    """What is asked behind the end is read as the version takes it on which it begins."""
    house = await serve_folder()
    stream = house.served.stream(f"{SERVICE}/ModelStreamInfer")
    stream.receive(request_of(0, sequence_start=True).SerializeToString())
    await next_message(stream)
    await house.notice("2", "more inputs")
    requests = [
        request_of(1, sequence_end=True),
        request_of(0, x=DEEP[:1], sequence_start=True),
        request_of(1, x=DEEP[None, 1:4]),
        request_of(4, x=X[:1]),
        request_of(5, x=DEEP[4:5]),
    ]
    for request in requests:
        stream.receive(request.SerializeToString())
    found = [pb.ModelStreamInferResponse.FromString(await next_message(stream)) for _ in requests]
    alone = house.alone("2", "more inputs")
    assert [told_by(found[at].infer_response) for at in (1, 2, 4)] == [
        ("2", each) for each in (alone.step(DEEP[0]), alone.fold(DEEP[1:4]), alone.step(DEEP[4]))
    ]
    assert found[3].error_message.startswith(f"x: has 2 values a step; its sequence is on {NAME}/2")
    assert found[3].infer_response.parameters["error_reason"].string_param == "INVALID_ARGUMENT"


async def test_a_sequence_in_the_store_is_of_a_version_of_another_width(serve_folder, way):
    """It comes back with its version, though that has left memory; what fits neither is refused."""
    house = await serve_folder(store=FakeStore())
    asks = way(house)
    old = house.alone("1")
    assert told_by(await asks.ask(0, sequence_start=True)) == ("1", old.step(X[0]))
    await house.notice("2", "more inputs")
    session = house.catalog.find("", f"inference:{NAME}:int:7")
    await house.catalog.persistence.wait_until_stored(session)
    session.engine.residents.evict(session.slot)
    house.retire()
    assert house.statuses() == {f"{NAME}/2": "SERVING"}
    for row in (1, 2):
        assert told_by(await asks.ask(row)) == ("1", old.step(X[row]))
    for width in (1, 3):
        refusal = await house.served.refused(INFER, infer(np.ones((1, width)), sequence_id=7))
        assert (refusal.reason, refusal.metadata["field"]) == ("INVALID_ARGUMENT", "x")
        assert "expected is [1, 2]" in refusal.message


@pytest.mark.parametrize("is_stored", [False, True])
async def test_what_fits_no_version_leaves_nothing(serve_folder, is_stored):
    """A start whose rows nobody takes opens no sequence, a request of an unknown one is refused as such."""
    store = FakeStore() if is_stored else None
    house = await serve_folder(store=store)
    await house.notice("2", "more inputs")
    for x in (np.ones((1, 4)), np.ones((1, 9, 4))):
        refusal = await house.served.refused(INFER, infer(x, sequence_id=7, sequence_start=True))
        assert (refusal.reason, refusal.metadata["field"]) == ("INVALID_ARGUMENT", "x")
    assert not [each for each in house.catalog.versions.engines if len(each.sessions)]
    assert (await house.served.refused(INFER, infer(x, sequence_id=7))).reason == "SESSION_NOT_FOUND"
    await until(lambda: store is None or not store.rows)


async def test_a_start_restarts_a_sequence_on_the_version_that_it_is_on(serve_folder, way):
    """Though a newer one leads; what starts after an end is new, and so on that one."""
    house = await serve_folder()
    asks = way(house)
    await asks.ask(0, sequence_start=True)
    await house.notice("2")
    assert told_by(await asks.ask(1, sequence_start=True)) == ("1", house.alone("1").step(X[1]))
    await asks.ask(2, sequence_end=True)
    assert told_by(await asks.ask(3, sequence_start=True)) == ("2", house.alone("2").step(X[3]))
