"""Versions that come while a server serves: when a file counts, which version leads, what is rejected."""

import hashlib
import os
import pathlib
import shutil

import pytest
from streamcell.v1 import streamcell_pb2 as pb

from service.errors import ConfigError
from tests.fakes import bits, talk
from tests.folder_of_models import NAME, FolderServer, X, until


class TestLooks:
    """A look at the folder finds new versions."""

    async def test_a_new_version_leads_once_two_looks_found_it_unchanged(self, serve_folder, logged):
        """At the first look somebody may still be writing the file; at the second it is loaded and leads."""
        server = await serve_folder()
        await server.served.open("old")
        server.put("2")
        await server.models.look()
        assert server.statuses() == {f"{NAME}/1": "SERVING"}
        await server.models.look()
        assert server.statuses() == {f"{NAME}/1": "RETIRING", f"{NAME}/2": "SERVING"}
        assert logged("model_retiring") == [{"model": f"{NAME}/1", "successor": f"{NAME}/2"}]
        await server.served.open("new")
        assert (await server.version_of("old"), await server.version_of("new")) == ("1", "2")
        assert await server.step("old", 0) == server.alone("1").step(X[0])
        assert await server.step("new", 0) == server.alone("2").step(X[0])
        listed = (await server.served.ask("ListModels", pb.ListModelsRequest())).models
        assert [model.status for model in listed] == [pb.MODEL_STATUS_RETIRING, pb.MODEL_STATUS_SERVING]
        assert server.model_info("2") == 1

    async def test_a_requested_look_loads_a_version_at_once(self, serve_folder):
        """As SIGHUP does: the caller vouches that the files are complete."""
        server = await serve_folder()
        server.models.start()
        server.put("2")
        server.models.look_soon()
        await until(lambda: f"{NAME}/2" in server.statuses())
        assert server.statuses()[f"{NAME}/2"] == "SERVING"

    async def test_the_folder_is_polled(self, serve_folder):
        """A new version is found without a request."""
        server = await serve_folder(models_poll_seconds=0.001)
        server.models.start()
        server.put("2")
        await until(lambda: server.statuses() == {f"{NAME}/2": "SERVING"})

    async def test_a_file_that_is_still_written_is_left_alone(self, serve_folder, logged):
        """Each look finds the file changed, and nothing is logged until it stays unchanged."""
        server = await serve_folder()
        whole = server.files["2"].read_bytes()
        path = server.put("2")
        for size in (0, 1000, len(whole) - 1):
            path.write_bytes(whole[:size])
            await server.models.look()
            assert server.statuses() == {f"{NAME}/1": "SERVING"}
        path.write_bytes(whole)
        await server.models.look()
        await server.models.look()
        assert server.statuses()[f"{NAME}/2"] == "SERVING"
        assert not logged("model_rejected")

    async def test_a_folder_that_cannot_be_read_changes_nothing(self, serve_folder, logged):
        """The error is logged once, for as long as it is the same."""
        server = await serve_folder()
        (server.path / NAME).rename(server.path / "elsewhere")
        (server.path / "elsewhere" / "1" / "model.pt").unlink()
        for _ in range(3):
            await server.models.look()
        assert server.statuses() == {f"{NAME}/1": "SERVING"}
        (line,) = logged("models_unreadable")
        assert "holds no NAME/VERSION" in line["why"]
        server.put("1")
        await server.notice("2")
        assert server.statuses()[f"{NAME}/2"] == "SERVING"

    async def test_a_new_name_is_served_as_well(self, serve_folder):
        """Models of other names stay as they are."""
        server = await serve_folder()
        server.put("1", name="another")
        await server.models.look()
        await server.models.look()
        assert server.statuses() == {"another/1": "SERVING", f"{NAME}/1": "SERVING"}


class TestLeader:
    """Of each name one version leads."""

    async def test_the_newest_version_that_can_be_served_leads(self, serve_folder):
        """A newer version that cannot be served is rejected."""
        server = await serve_folder()
        server.put("9", "2").write_bytes(b"no artifact")
        await server.notice("2")
        assert server.statuses() == {f"{NAME}/1": "RETIRING", f"{NAME}/2": "SERVING"}

    async def test_the_older_version_leads_again_when_the_newer_is_removed(self, serve_folder):
        """Once two looks found the newer one missing: it may be on its way back."""
        server = await serve_folder()
        await server.served.open("first")
        await server.notice("2")
        await server.served.open("second")
        shutil.rmtree(server.path / NAME / "2")
        await server.models.look()
        assert server.statuses()[f"{NAME}/2"] == "SERVING"
        await server.models.look()
        assert server.statuses() == {f"{NAME}/1": "SERVING", f"{NAME}/2": "RETIRING"}
        await server.served.open("third")
        assert [await server.version_of(each) for each in ("first", "second", "third")] == ["1", "2", "1"]


class TestRejectedFiles:
    """A file that cannot be served is logged and changes nothing."""

    async def test_a_bad_file_is_logged_once_and_changes_nothing(self, serve_folder, logged):
        """The metric counts it; a good file in its place is loaded."""
        server = await serve_folder()
        path = server.put("2")
        path.write_bytes(b"no artifact")
        for _ in range(4):
            await server.models.look()
        (line,) = logged("model_rejected")
        assert line["model"] == f"{NAME}/2"
        assert "not a readable TorchScript file" in line["why"]
        assert server.sample("streamcell_model_rejected_total") == 1
        assert server.statuses() == {f"{NAME}/1": "SERVING"}
        assert (
            await server.served.refused("OpenSession", pb.OpenSessionRequest(model=f"{NAME}/2"))
        ).code == 5
        await server.notice("2")
        assert server.statuses()[f"{NAME}/2"] == "SERVING"

    async def test_a_file_that_replaces_a_served_one_is_rejected(self, serve_folder, logged):
        """A new artifact takes a new version; the same bytes, written again, are not logged."""
        server = await serve_folder()
        path = server.put("1")
        os.utime(path, (1, 1))
        for _ in range(3):
            await server.models.look()
        assert not logged("model_rejected")
        server.put("1", "2")
        for _ in range(3):
            await server.models.look()
        (line,) = logged("model_rejected")
        assert "a new artifact takes a new version" in line["why"]
        await server.served.open("s")
        assert await server.step("s", 0) == server.alone("1").step(X[0])

    async def test_a_server_starts_beside_a_bad_version(self, serve_folder, logged, tmp_path):
        """A worker that is started again behaves as one that met the bad version while serving."""
        path = tmp_path / NAME / "2" / "model.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no artifact")
        server = await serve_folder()
        assert server.statuses() == {f"{NAME}/1": "SERVING"}
        for _ in range(3):
            await server.models.look()
        assert [line["model"] for line in logged("model_rejected")] == [f"{NAME}/2"]

    async def test_a_name_without_any_good_version_is_an_error_at_the_start(self, tmp_path, files):
        """The message is the file's own error."""
        path = tmp_path / "other" / "1" / "model.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no artifact")
        with pytest.raises(ConfigError, match=r"other/1/model\.pt: not a readable"):
            await FolderServer(tmp_path, files).start()


class TestVersionsOnDisk:
    """A version that is not in memory is loaded when a request names it."""

    async def test_a_version_that_left_memory_is_loaded_when_it_is_named(self, serve_folder):
        """By OpenSession, and by a step that opens its session, on both paths; it leaves as before."""
        server = await serve_folder()
        await server.notice("2")
        server.retire()
        model = f"{NAME}/1"
        assert model not in server.statuses()
        await server.served.open("s", model=model)
        assert server.statuses() == {model: "RETIRING", f"{NAME}/2": "SERVING"}
        for number, ask in enumerate((server.step, None)):
            for engine in server.catalog.versions.engines:
                for slot in engine.sessions.all_slots().tolist():
                    engine.residents.close(slot)
            server.retire()
            assert model not in server.statuses()
            if ask is not None:
                assert await ask(f"n{number}", 0, step_index=0, model=model) == server.alone("1").step(X[0])
            else:
                step = pb.StepRequest(session_id=f"n{number}", x=X[0], step_index=0, model=model)
                (found,) = await talk(server.served.stream(), pb.StreamRequest(step=step))
                assert bits(found.step.y) == server.alone("1").step(X[0])
            assert await server.version_of(f"n{number}") == "1"

    async def test_a_version_whose_folder_is_gone_is_not_found(self, serve_folder):
        """The error names the models that are served; no name reaches out of the folder."""
        server = await serve_folder()
        await server.notice("2")
        server.retire()
        shutil.rmtree(server.path / NAME / "1")
        await server.models.look()
        for model in (f"{NAME}/1", f"{NAME}/../{NAME}/2", "../x/1"):
            refusal = await server.served.refused("OpenSession", pb.OpenSessionRequest(model=model))
            assert (refusal.reason, f"{NAME}/2" in refusal.message) == ("MODEL_NOT_FOUND", True)


class TestAllowedArtifacts:
    """With --allowed-artifacts, a version that is not on the list is a bad one until it is."""

    @pytest.fixture
    def listing(self, tmp_path_factory, files):
        """Returns the path of a list, and a function that writes the versions given into it."""
        path = tmp_path_factory.mktemp("list") / "allowed.sha256"

        def write(*versions):
            hashes = [hashlib.sha256(files[version].read_bytes()).hexdigest() for version in versions]
            path.write_text("".join(f"{each}  {NAME}\n" for each in hashes))
            return str(path)

        return write

    async def test_a_new_version_that_is_not_on_the_list_is_rejected(self, serve_folder, listing, logged):
        """With its hash, once; the version before it leads on, and is served."""
        server = await serve_folder(allowed_artifacts=listing("1"))
        await server.served.open("s")
        await server.notice("2")
        await server.models.look()
        assert server.statuses() == {f"{NAME}/1": "SERVING"}
        (line,) = logged("model_rejected")
        assert line["model"] == f"{NAME}/2"
        assert hashlib.sha256(server.files["2"].read_bytes()).hexdigest() in line["why"]
        assert await server.step("s", 0) == server.alone("1").step(X[0])

    async def test_it_is_loaded_once_the_list_has_it(self, serve_folder, listing):
        """The list is read again at each look; the file itself need not change."""
        server = await serve_folder(allowed_artifacts=listing("1"))
        await server.notice("2")
        listing("1", "2")
        await server.models.look()
        assert server.statuses()[f"{NAME}/2"] == "SERVING"

    async def test_a_list_that_cannot_be_used_stays_as_it_was(self, serve_folder, listing, logged):
        """It is logged once, allows nothing new, and is used again when it is whole."""
        server = await serve_folder(allowed_artifacts=listing("1"))
        path = pathlib.Path(listing("1"))
        _write(path, "2 and 3 may be loaded\n")
        for _ in range(3):
            await server.notice("2")
        (line,) = logged("allowed_artifacts_unusable")
        assert line["why"].startswith(f"--allowed-artifacts: {path}: line 1 does not begin")
        assert server.statuses() == {f"{NAME}/1": "SERVING"}
        listing("1", "2")
        await server.models.look()
        assert server.statuses()[f"{NAME}/2"] == "SERVING"

    async def test_a_version_in_memory_stays(self, serve_folder, listing):
        """A list is about loading: what is taken off it is served until it retires or the server ends."""
        server = await serve_folder(allowed_artifacts=listing("1", "2"))
        listing("2")
        await server.models.look()
        assert server.statuses() == {f"{NAME}/1": "SERVING"}

    async def test_a_start_without_any_allowed_version_names_the_file(self, serve_folder, listing):
        """As with bad artifacts alone: the server does not start, and says why."""
        with pytest.raises(ConfigError, match="is not in --allowed-artifacts"):
            await serve_folder(allowed_artifacts=listing("2"))

    async def test_a_start_goes_on_with_the_versions_that_are_allowed(self, serve_folder, listing, logged):
        """The other one is rejected."""
        server = await serve_folder("1", "2", allowed_artifacts=listing("1"))
        assert server.statuses() == {f"{NAME}/1": "SERVING"}
        assert [line["model"] for line in logged("model_rejected")] == [f"{NAME}/2"]


def _write(path, text):
    path.write_text(text)
