"""The Open Inference Protocol while versions of a model come and go."""

import shutil
import weakref

import numpy as np
import pytest
from streamcell.inference import open_inference_pb2 as pb
from streamcell.v1 import streamcell_pb2 as api

from tests.fake_store import FakeStore
from tests.fakes import next_message
from tests.folder_of_models import NAME, X, until
from tests.inference import SERVICE, infer, next_response, y_of

INFER = f"{SERVICE}/ModelInfer"
WIDER_X = np.concatenate([X, X[:, :1] + 1], axis=1)  # for a version with one input more


def request_of(row, sequence=7, version="", x=None, **parameters):
    """Returns a request of one row of X, or of `x`."""
    parameters = {"sequence_id": sequence, **parameters} if sequence else parameters
    request = infer([X[row]] if x is None else x, **parameters)
    request.model_version = version
    return request


class UnaryClient:
    """A client that uses ModelInfer."""

    def __init__(self, server):
        self.server = server

    async def ask(self, *args, **options):
        """Returns a response."""
        return await self.server.served.ask(INFER, request_of(*args, **options))


class StreamClient:
    """A client that uses one ModelStreamInfer."""

    def __init__(self, server):
        self.stream = server.served.stream(f"{SERVICE}/ModelStreamInfer")

    async def ask(self, *args, **options):
        """Returns a response."""
        self.stream.receive(request_of(*args, **options).SerializeToString())
        response = await next_response(self.stream)
        assert not response.error_message, response
        return response.infer_response


@pytest.fixture(params=[UnaryClient, StreamClient])
def make_client(request):
    """The class of a client; the test runs with each."""
    return request.param


def version_and_y(response):
    """Returns the version and the prediction's bytes."""
    return response.model_version, y_of(response).tobytes()


class TestKeep:
    """With `--on-new-version keep` a sequence stays on its version."""

    @pytest.mark.parametrize("store", [False, True])
    async def test_a_sequence_stays_on_the_version_on_which_it_began(self, serve_folder, make_client, store):
        """Its requests name no version. New sequences, and steps without one, run on the new version."""
        server = await serve_folder(store=FakeStore() if store else None)
        client = make_client(server)
        old, new = server.alone("1"), server.alone("2")
        assert version_and_y(await client.ask(0, sequence_start=True)) == ("1", old.step(X[0]))
        assert version_and_y(await client.ask(0, sequence=0)) == ("1", server.alone("1").step(X[0]))
        await server.notice("2")
        for row in (1, 2):
            assert version_and_y(await client.ask(row)) == ("1", old.step(X[row]))
            assert version_and_y(await client.ask(row, sequence=0)) == ("2", server.alone("2").step(X[row]))
        assert version_and_y(await client.ask(0, sequence=8, sequence_start=True)) == ("2", new.step(X[0]))
        assert version_and_y(await client.ask(3, sequence_end=True)) == ("1", old.step(X[3]))
        server.retire()
        assert server.statuses() == {f"{NAME}/2": "SERVING"}
        assert version_and_y(await client.ask(0, sequence_start=True)) == ("2", server.alone("2").step(X[0]))
        assert version_and_y(await client.ask(1, sequence=8)) == ("2", new.step(X[1]))
        assert version_and_y(await client.ask(5, sequence=0)) == ("2", server.alone("2").step(X[5]))

    async def test_a_start_restarts_a_sequence_on_the_version_that_it_is_on(self, serve_folder, make_client):
        """A newer version leads; a start after an end is new, and runs on the newer one."""
        server = await serve_folder()
        client = make_client(server)
        await client.ask(0, sequence_start=True)
        await server.notice("2")
        assert version_and_y(await client.ask(1, sequence_start=True)) == ("1", server.alone("1").step(X[1]))
        await client.ask(2, sequence_end=True)
        assert version_and_y(await client.ask(3, sequence_start=True)) == ("2", server.alone("2").step(X[3]))

    async def test_nothing_refers_to_a_version_that_left(self, serve_folder, make_client):
        """Neither cached requests nor built responses refer to its engine, so the memory is free."""
        server = await serve_folder()
        client = make_client(server)
        for row in range(3):
            await client.ask(row, sequence_start=row == 0)
        await server.notice("2")
        for row in range(3, 6):
            assert (await client.ask(row, sequence_end=row == 5)).model_version == "1"
        engine = weakref.ref(server.catalog.versions.get(f"{NAME}/1"))
        await server.check_unloaded(engine)


class TestMigrate:
    """With `--on-new-version migrate` a sequence moves to the new version."""

    @pytest.mark.parametrize("version", ["", "1"])
    async def test_sequences_migrate(self, serve_folder, make_client, version):
        """Requests may name the version on which the sequence began, or none."""
        server = await serve_folder(on_new_version="migrate")
        client = make_client(server)
        old, new = server.alone("1"), server.alone("2")
        assert version_and_y(await client.ask(0, version=version, sequence_start=True)) == (
            "1",
            old.step(X[0]),
        )
        await server.notice("2")
        new.state = old.state
        assert version_and_y(await client.ask(1, version=version)) == ("2", new.step(X[1]))
        server.retire()
        assert server.statuses() == {f"{NAME}/2": "SERVING"}
        assert version_and_y(await client.ask(2, version=version)) == ("2", new.step(X[2]))
        assert version_and_y(await client.ask(3, version=version, sequence_end=True)) == ("2", new.step(X[3]))
        assert server.statuses() == {f"{NAME}/2": "SERVING"}

    async def test_requests_under_way_when_a_sequence_moves(self, serve_folder):
        """Later requests wait for the earlier ones; order and indexes stay."""
        server = await serve_folder(on_new_version="migrate")
        await server.notice("2")
        engine = server.catalog.versions.get(f"{NAME}/1")
        engine.resume()
        server.catalog.versions.lead(engine)
        stream = server.served.stream(f"{SERVICE}/ModelStreamInfer")
        requests = [request_of(row, sequence_start=row == 0, sequence_end=row == 5) for row in range(6)]
        for request in requests[:3]:
            stream.receive(request.SerializeToString())
        server.catalog.versions.lead(server.catalog.versions.get(f"{NAME}/2"))
        for request in requests[3:]:
            stream.receive(request.SerializeToString())
        found = [(await next_response(stream)).infer_response for _ in requests]
        old, new = server.alone("1"), server.alone("2")
        expected = [("1", old.step(X[row])) for row in range(3)]
        new.state = old.state
        expected += [("2", new.step(X[row])) for row in range(3, 6)]
        assert [version_and_y(each) for each in found] == expected
        assert [each.parameters["step_index"].int64_param for each in found] == list(range(6))

    async def test_several_steps_of_a_request_run_on_one_version(self, serve_folder):
        """A request is applied as a whole on the version that its sequence is on in its turn."""
        server = await serve_folder(on_new_version="migrate")
        first = infer(X[None, :3], sequence_id=7, sequence_start=True)
        old = server.alone("1")
        assert y_of(await server.served.ask(INFER, first)).tobytes() == old.fold(X[:3])
        await server.notice("2")
        new = server.alone("2")
        new.state = old.state
        found = await server.served.ask(INFER, infer(X[None, 3:6], sequence_id=7))
        assert (found.model_version, y_of(found).tobytes()) == ("2", new.fold(X[3:6]))
        index = server.served.ask(f"{SERVICE}/RepositoryIndex", pb.RepositoryIndexRequest())
        assert np.all([each.state == "READY" for each in (await index).models])

    async def test_answers_of_a_durable_sequence_that_moves_keep_their_order(self, serve_folder):
        """The store reports a later step first, and the sequence is on another version by then."""
        server = await serve_folder(store=FakeStore(), on_new_version="migrate")
        opened = api.OpenSessionRequest(session_id=f"inference:{NAME}:int:7", model=NAME, durable=True)
        await server.served.ask("OpenSession", opened)
        writes = []  # what runs when steps are stored
        old = server.catalog.versions.get(NAME)
        old.answers.when_stored = lambda slots, then: writes.append(then)
        stream = server.served.stream(f"{SERVICE}/ModelStreamInfer")
        for row in range(2):
            stream.receive(request_of(row).SerializeToString())
        await until(lambda: len(writes) == 2)
        await server.notice("2")
        server.retire()
        assert not len(old.sessions)
        for then in reversed(writes):
            then({})
        for index in range(2):
            response = (await next_response(stream)).infer_response
            assert response.parameters["step_index"].int64_param == index


class TestReload:
    """Versions that have left memory."""

    async def test_a_version_that_left_comes_back_when_a_request_names_it(self, serve_folder, make_client):
        """It is ready, described and run; later requests on the stream keep their place."""
        server = await serve_folder()
        await server.notice("2")
        server.retire()
        about = {"name": NAME, "version": "1"}
        assert (await server.served.ask(f"{SERVICE}/ModelReady", pb.ModelReadyRequest(**about))).ready
        assert server.statuses() == {f"{NAME}/2": "SERVING"}
        client = make_client(server)
        alone = server.alone("1")
        assert version_and_y(await client.ask(0, version="1", sequence_start=True)) == ("1", alone.step(X[0]))
        assert version_and_y(await client.ask(1, version="1", sequence_end=True)) == ("1", alone.step(X[1]))
        server.retire()
        found = await server.served.ask(f"{SERVICE}/ModelMetadata", pb.ModelMetadataRequest(**about))
        assert found.versions == ["1"]
        server.retire()
        shutil.rmtree(server.path / NAME / "1")
        await server.models.look()
        refusal = await server.served.refused(INFER, request_of(0, version="1", sequence_start=True))
        assert refusal.reason == "MODEL_NOT_FOUND"

    async def test_requests_behind_one_that_waits_for_its_model_keep_their_place(self, serve_folder):
        """A client that half-closes meanwhile gets all answers, a client that goes away none."""
        server = await serve_folder()
        await server.notice("2")
        server.retire()
        for is_gone in (False, True):
            stream = server.served.stream(f"{SERVICE}/ModelStreamInfer")
            for row in range(3):
                request = request_of(row, version="1", sequence_start=row == 0, sequence_end=row == 2)
                stream.receive(request.SerializeToString())
            assert stream.is_full
            if is_gone:
                stream.conversation.cancel()
                break
            stream.half_close()
            alone = server.alone("1")
            for row in range(3):
                response = (await next_response(stream)).infer_response
                assert version_and_y(response) == ("1", alone.step(X[row]))
            assert await next_message(stream) is None
            server.retire()
            assert server.statuses() == {f"{NAME}/2": "SERVING"}

    async def test_another_artifact_of_a_version_that_left(self, serve_folder, make_client):
        """It has its own number of predictions, whatever the artifact before it had."""
        server = await serve_folder()
        client = make_client(server)
        first = await client.ask(0, version="1", sequence_start=True, sequence_end=True)
        assert version_and_y(first) == ("1", server.alone("1").step(X[0]))
        await server.notice("2")
        server.retire()
        shutil.rmtree(server.path / NAME / "1")
        await server.models.look()
        server.put("1", "more outputs")
        await server.models.look(are_complete=True)
        found = await client.ask(0, version="1", sequence_start=True)
        assert y_of(found).shape == (1, 3)
        assert version_and_y(found) == ("1", server.alone("1", "more outputs").step(X[0]))


class TestWidths:
    """Versions with other numbers of inputs or outputs."""

    @pytest.mark.parametrize("made", ["more inputs", "more outputs"])
    @pytest.mark.parametrize("num_steps", [1, 3])
    async def test_a_version_of_other_widths_leads(self, serve_folder, make_client, made, num_steps):
        """A sequence stays on its version, with the rows and predictions of that version."""
        server = await serve_folder()
        client = make_client(server)
        old, new = server.alone("1"), server.alone("2", made)
        rows = WIDER_X if made == "more inputs" else X
        first = await client.ask(None, x=X[None, :2], sequence_start=True)
        assert version_and_y(first) == ("1", old.fold(X[:2]))
        await server.notice("2", made)
        for at in (2, 2 + num_steps):
            part = slice(at, at + num_steps)
            assert version_and_y(await client.ask(None, x=X[None, part])) == ("1", old.fold(X[part]))
        restarted = await client.ask(None, 8, x=rows[None, :num_steps], sequence_start=True)
        assert version_and_y(restarted) == ("2", new.fold(rows[:num_steps]))
        await client.ask(9, sequence_end=True)
        assert version_and_y(await client.ask(None, 8, x=rows[9:10])) == ("2", new.step(rows[9]))
        restarted = await client.ask(None, x=rows[:1], sequence_start=True)
        assert version_and_y(restarted) == ("2", server.alone("2", made).step(rows[0]))

    async def test_a_sequence_ends_and_a_new_one_starts_on_a_wider_version_at_once(self, serve_folder):
        """Requests behind the end are read for the version on which the new sequence starts."""
        server = await serve_folder()
        stream = server.served.stream(f"{SERVICE}/ModelStreamInfer")
        stream.receive(request_of(0, sequence_start=True).SerializeToString())
        await next_message(stream)
        await server.notice("2", "more inputs")
        requests = [
            request_of(1, sequence_end=True),
            request_of(0, x=WIDER_X[:1], sequence_start=True),
            request_of(1, x=WIDER_X[None, 1:4]),
            request_of(4, x=X[:1]),
            request_of(5, x=WIDER_X[4:5]),
        ]
        for request in requests:
            stream.receive(request.SerializeToString())
        found = [(await next_response(stream)) for _ in requests]
        alone = server.alone("2", "more inputs")
        assert [version_and_y(found[at].infer_response) for at in (1, 2, 4)] == [
            ("2", each) for each in (alone.step(WIDER_X[0]), alone.fold(WIDER_X[1:4]), alone.step(WIDER_X[4]))
        ]
        assert found[3].error_message.startswith(f"x: has 2 values a step; its sequence is on {NAME}/2")
        assert found[3].infer_response.parameters["error_reason"].string_param == "INVALID_ARGUMENT"

    async def test_a_sequence_in_the_store_is_of_a_version_of_another_width(self, serve_folder, make_client):
        """It comes back with its version, which had left memory; rows that fit neither are refused."""
        server = await serve_folder(store=FakeStore())
        client = make_client(server)
        old = server.alone("1")
        assert version_and_y(await client.ask(0, sequence_start=True)) == ("1", old.step(X[0]))
        await server.notice("2", "more inputs")
        session = server.catalog.find("", f"inference:{NAME}:int:7")
        await server.catalog.persistence.wait_until_stored(session)
        session.engine.residents.evict(session.slot)
        server.retire()
        assert server.statuses() == {f"{NAME}/2": "SERVING"}
        for row in (1, 2):
            assert version_and_y(await client.ask(row)) == ("1", old.step(X[row]))
        for width in (1, 3):
            refusal = await server.served.refused(INFER, infer(np.ones((1, width)), sequence_id=7))
            assert (refusal.reason, refusal.metadata["field"]) == ("INVALID_ARGUMENT", "x")
            assert "expected is [1, 2]" in refusal.message

    @pytest.mark.parametrize("is_stored", [False, True])
    async def test_rows_that_no_version_takes_leave_nothing(self, serve_folder, is_stored):
        """A start with such rows opens no sequence; other requests are refused as of an unknown sequence."""
        store = FakeStore() if is_stored else None
        server = await serve_folder(store=store)
        await server.notice("2", "more inputs")
        for x in (np.ones((1, 4)), np.ones((1, 9, 4))):
            refusal = await server.served.refused(INFER, infer(x, sequence_id=7, sequence_start=True))
            assert (refusal.reason, refusal.metadata["field"]) == ("INVALID_ARGUMENT", "x")
        assert not [each for each in server.catalog.versions.engines if len(each.sessions)]
        assert (await server.served.refused(INFER, infer(x, sequence_id=7))).reason == "SESSION_NOT_FOUND"
        await until(lambda: store is None or not store.rows)
