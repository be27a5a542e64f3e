"""The Open Inference Protocol while versions come and go: sequences run on, and steps on their own."""

import gc
import shutil
import weakref

import numpy as np
import pytest
from streamcell.inference import open_inference_pb2 as pb
from streamcell.v1 import streamcell_pb2 as api

from tests import fakes
from tests.fake_store import FakeStore
from tests.fakes import next_message
from tests.folder_of_models import NAME, X, until
from tests.inference import SERVICE, infer, y_of

INFER = f"{SERVICE}/ModelInfer"


def request_of(row, sequence=7, version="", **parameters):
    """Returns a request of one row of X."""
    parameters = {"sequence_id": sequence, **parameters} if sequence else parameters
    request = infer([X[row]], **parameters)
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
    house.models.tend()
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
    house.models.tend()
    assert house.statuses() == {f"{NAME}/2": "SERVING"}
    assert told_by(await asks.ask(2, version=version)) == ("2", new.step(X[2]))
    assert told_by(await asks.ask(3, version=version, sequence_end=True)) == ("2", new.step(X[3]))
    assert house.statuses() == {f"{NAME}/2": "SERVING"}


async def test_requests_under_way_when_a_sequence_moves(serve_folder):
    """Those that come later wait for them; order and indexes are as ever."""
    house = await serve_folder(on_new_version="migrate")
    await house.notice("2")
    engine = house.catalog.get(f"{NAME}/1")
    engine.resume()
    house.catalog.lead(engine)
    stream = house.served.stream(f"{SERVICE}/ModelStreamInfer")
    requests = [request_of(row, sequence_start=row == 0, sequence_end=row == 5) for row in range(6)]
    for request in requests[:3]:
        stream.receive(request.SerializeToString())
    house.catalog.lead(house.catalog.get(f"{NAME}/2"))
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
    house.models.tend()
    about = {"name": NAME, "version": "1"}
    assert (await house.served.ask(f"{SERVICE}/ModelReady", pb.ModelReadyRequest(**about))).ready
    assert house.statuses() == {f"{NAME}/2": "SERVING"}
    asks = way(house)
    alone = house.alone("1")
    assert told_by(await asks.ask(0, version="1", sequence_start=True)) == ("1", alone.step(X[0]))
    assert told_by(await asks.ask(1, version="1", sequence_end=True)) == ("1", alone.step(X[1]))
    house.models.tend()
    found = await house.served.ask(f"{SERVICE}/ModelMetadata", pb.ModelMetadataRequest(**about))
    assert found.versions == ["1"]
    house.models.tend()
    shutil.rmtree(house.path / NAME / "1")
    await house.models.look()
    refusal = await house.served.refused(INFER, request_of(0, version="1", sequence_start=True))
    assert refusal.reason == "MODEL_NOT_FOUND"


async def test_what_follows_a_request_that_waits_for_its_model_keeps_its_place(serve_folder):
    """On its stream; a client that was done meanwhile hears all answers, one that went away none."""
    house = await serve_folder()
    await house.notice("2")
    house.models.tend()
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
        house.models.tend()
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
    gone = weakref.ref(house.catalog.get(f"{NAME}/1"))
    house.served.engines.clear()
    gc.disable()
    try:
        house.models.tend()
        await fakes.turn()
        assert gone() is None, gc.get_referrers(gone())
    finally:
        gc.enable()


async def test_another_artifact_of_a_version_that_left(serve_folder, way):
    """Its predictions are as many as it has, whatever the one before it gave."""
    house = await serve_folder()
    asks = way(house)
    first = await asks.ask(0, version="1", sequence_start=True, sequence_end=True)
    assert told_by(first) == ("1", house.alone("1").step(X[0]))
    await house.notice("2")
    house.models.tend()
    shutil.rmtree(house.path / NAME / "1")
    await house.models.look()
    house.put("1", "more outputs")
    await house.models.look(is_whole=True)
    found = await asks.ask(0, version="1", sequence_start=True)
    assert y_of(found).shape == (1, 3)
    assert told_by(found) == ("1", house.alone("1", "more outputs").step(X[0]))


async def test_answers_of_a_durable_sequence_that_moves_keep_their_order(serve_folder):
    """Though the store tells of a later step first, and the sequence is on another version by then."""
    house = await serve_folder(store=FakeStore(), on_new_version="migrate")
    opened = api.OpenSessionRequest(session_id=f"inference:{NAME}:int:7", model=NAME, durable=True)
    await house.served.ask("OpenSession", opened)
    told = []
    old = house.catalog.get(NAME)
    old.when_stored = lambda slots, then: told.append(then)
    stream = house.served.stream(f"{SERVICE}/ModelStreamInfer")
    for row in range(2):
        stream.receive(request_of(row).SerializeToString())
    await until(lambda: len(told) == 2)
    await house.notice("2")
    house.models.tend()
    assert not len(old.sessions)
    for then in reversed(told):
        then(None)
    for index in range(2):
        response = pb.ModelStreamInferResponse.FromString(await next_message(stream)).infer_response
        assert response.parameters["step_index"].int64_param == index
