"""Versions that come and go while a server serves: what is taken, who leads, who leaves, what is told."""

import os
import shutil
import weakref

import numpy as np
import pytest
from streamcell.v1 import streamcell_pb2 as pb

from service.errors import ConfigError
from tests.fakes import bits, talk
from tests.folder_of_models import NAME, FolderServer, X, until


def info_of(server, version):
    """Returns the sample that says that a version is served."""
    labels = {"model": NAME, "version": version, "device": "cpu", "state_bytes": "12"}
    return server.sample("streamcell_model_info", **labels)


# -- Versions come -----------------------------------------------------------------------------------


async def test_a_new_version_leads_once_it_has_settled(serve_folder, told):
    """Seen once it may still be written; seen the same again it is loaded and takes the new sessions."""
    server = await serve_folder()
    await server.served.open("old")
    server.put("2")
    await server.models.look()
    assert server.statuses() == {f"{NAME}/1": "SERVING"}
    await server.models.look()
    assert server.statuses() == {f"{NAME}/1": "RETIRING", f"{NAME}/2": "SERVING"}
    assert told("model_retiring") == [{"model": f"{NAME}/1", "successor": f"{NAME}/2"}]
    await server.served.open("new")
    assert (await server.version_of("old"), await server.version_of("new")) == ("1", "2")
    assert await server.step("old", 0) == server.alone("1").step(X[0])
    assert await server.step("new", 0) == server.alone("2").step(X[0])
    listed = (await server.served.ask("ListModels", pb.ListModelsRequest())).models
    assert [model.status for model in listed] == [pb.MODEL_STATUS_RETIRING, pb.MODEL_STATUS_SERVING]
    assert info_of(server, "2") == 1


async def test_somebody_who_says_so_has_it_taken_at_once(serve_folder):
    """As SIGHUP does; the folder is looked at by the task that watches."""
    server = await serve_folder()
    server.models.start()
    server.put("2")
    server.models.look_soon()
    await until(lambda: f"{NAME}/2" in server.statuses())
    assert server.statuses()[f"{NAME}/2"] == "SERVING"


async def test_the_folder_is_looked_at_again_and_again(serve_folder):
    """Without anybody's saying so."""
    server = await serve_folder(models_poll_seconds=0.001)
    server.models.start()
    server.put("2")
    await until(lambda: server.statuses() == {f"{NAME}/2": "SERVING"})


async def test_a_file_that_is_still_written_is_left_alone(serve_folder, told):
    """Each look finds it another; nothing is told of it until it stays as it is."""
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
    assert not told("model_rejected")


async def test_a_bad_file_is_told_once_and_changes_nothing(serve_folder, told):
    """It counts; a better one in its place is taken."""
    server = await serve_folder()
    path = server.put("2")
    path.write_bytes(b"no artifact")
    for _ in range(4):
        await server.models.look()
    (line,) = told("model_rejected")
    assert line["model"] == f"{NAME}/2"
    assert "not a readable TorchScript file" in line["why"]
    assert server.sample("streamcell_model_rejected_total") == 1
    assert server.statuses() == {f"{NAME}/1": "SERVING"}
    assert (await server.served.refused("OpenSession", pb.OpenSessionRequest(model=f"{NAME}/2"))).code == 5
    await server.notice("2")
    assert server.statuses()[f"{NAME}/2"] == "SERVING"


async def test_a_bad_newest_does_not_keep_a_good_one_out(serve_folder):
    """The newest that can be served leads."""
    server = await serve_folder()
    server.put("9", "2").write_bytes(b"no artifact")
    await server.notice("2")
    assert server.statuses() == {f"{NAME}/1": "RETIRING", f"{NAME}/2": "SERVING"}


async def test_a_server_starts_beside_a_bad_version(serve_folder, told, tmp_path):
    """It was told and changed nothing before, so it does not when a worker is started anew either."""
    path = tmp_path / NAME / "2" / "model.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no artifact")
    server = await serve_folder()
    assert server.statuses() == {f"{NAME}/1": "SERVING"}
    for _ in range(3):
        await server.models.look()
    assert [line["model"] for line in told("model_rejected")] == [f"{NAME}/2"]


async def test_a_name_that_cannot_be_served_at_all_is_an_error(tmp_path, files):
    """At the start, by the file's own error."""
    path = tmp_path / "other" / "1" / "model.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no artifact")
    with pytest.raises(ConfigError, match=r"other/1/model\.pt: not a readable"):
        await FolderServer(tmp_path, files).start()


async def test_another_file_in_the_place_of_one_served_is_told(serve_folder, told):
    """A new artifact takes a new version; the same bytes, written anew, are nothing to tell."""
    server = await serve_folder()
    path = server.put("1")
    os.utime(path, (1, 1))
    for _ in range(3):
        await server.models.look()
    assert not told("model_rejected")
    server.put("1", "2")
    for _ in range(3):
        await server.models.look()
    (line,) = told("model_rejected")
    assert "a new artifact takes a new version" in line["why"]
    await server.served.open("s")
    assert await server.step("s", 0) == server.alone("1").step(X[0])


async def test_a_folder_that_cannot_be_read_changes_nothing(serve_folder, told):
    """It is told once, as long as it is the same trouble."""
    server = await serve_folder()
    (server.path / NAME).rename(server.path / "elsewhere")
    (server.path / "elsewhere" / "1" / "model.pt").unlink()
    for _ in range(3):
        await server.models.look()
    assert server.statuses() == {f"{NAME}/1": "SERVING"}
    (line,) = told("models_unreadable")
    assert "holds no NAME/VERSION" in line["why"]
    server.put("1")
    await server.notice("2")
    assert server.statuses()[f"{NAME}/2"] == "SERVING"


async def test_a_new_name_is_served_as_well(serve_folder):
    """Models of other names are not touched by it."""
    server = await serve_folder()
    server.put("1", name="another")
    await server.models.look()
    await server.models.look()
    assert server.statuses() == {"another/1": "SERVING", f"{NAME}/1": "SERVING"}


# -- Versions leave ----------------------------------------------------------------------------------


async def test_an_old_version_leaves_with_its_last_session(serve_folder, told):
    """Not before; then its memory is free, and its sample gone."""
    server = await serve_folder()
    await server.served.open("s")
    await server.notice("2")
    server.retire()
    assert f"{NAME}/1" in server.statuses()
    gone = weakref.ref(server.catalog.versions.get(f"{NAME}/1"))
    await server.served.ask("CloseSession", pb.CloseSessionRequest(session_id="s"))
    await server.check_unloaded(gone)
    assert server.statuses() == {f"{NAME}/2": "SERVING"}
    assert told("model_left") == [{"model": f"{NAME}/1"}]
    assert (info_of(server, "1"), info_of(server, "2")) == (None, 1)


async def test_how_a_session_ended_is_known_after_its_version_left(serve_folder):
    """One that expired still says so."""
    server = await serve_folder()
    await server.served.open("s")
    await server.notice("2")
    session = server.catalog.find("", "s")
    session.engine.residents.expire(session.slot)
    server.retire()
    assert server.statuses() == {f"{NAME}/2": "SERVING"}
    refusal = await server.served.refused("Step", pb.StepRequest(session_id="s", x=X[0]))
    assert refusal.reason == "SESSION_EXPIRED"


async def test_a_version_that_left_comes_back_when_it_is_named(serve_folder):
    """By OpenSession, and by a step that opens its session, on either path; it leaves as before."""
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


async def test_a_version_whose_folder_is_gone_does_not_come_back(serve_folder):
    """It is not found then, and what is served is named; nor do names reach out of the folder."""
    server = await serve_folder()
    await server.notice("2")
    server.retire()
    shutil.rmtree(server.path / NAME / "1")
    await server.models.look()
    for model in (f"{NAME}/1", f"{NAME}/../{NAME}/2", "../x/1"):
        refusal = await server.served.refused("OpenSession", pb.OpenSessionRequest(model=model))
        assert (refusal.reason, f"{NAME}/2" in refusal.message) == ("MODEL_NOT_FOUND", True)


async def test_the_older_version_leads_again_when_the_newer_is_taken_away(serve_folder):
    """Once the folder was seen without it twice: it may be on its way back."""
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


async def test_the_last_version_of_a_name_stays(serve_folder):
    """Though its folder is gone: somebody has to serve."""
    server = await serve_folder()
    server.put("1", name="another")
    shutil.rmtree(server.path / NAME / "1")
    for _ in range(3):
        await server.models.look()
        server.retire()
    assert server.statuses()[f"{NAME}/1"] == "SERVING"


async def test_a_frame_may_have_sessions_of_two_versions(serve_folder):
    """A gateway binds what it opens, before and after: each entry runs on its own version."""
    server = await serve_folder()
    await server.served.open("a", "b")
    await server.notice("2")
    await server.served.open("c")
    stream = server.served.stream()
    names = ["a", "c", "b"]
    await talk(stream, pb.StreamRequest(config=pb.StreamConfig(session_ids=names)))
    alone = {"a": server.alone("1"), "b": server.alone("1"), "c": server.alone("2")}
    every = pb.Frame(x_raw=X[:3].tobytes())
    numbers = pb.Frame(session_raw=np.arange(3, dtype="<u4").tobytes(), x_raw=X[3:6].tobytes())
    named = pb.Frame(session_ids=names, x_raw=X[6:9].tobytes())
    for at, frame in enumerate((every, numbers, named)):
        (found,) = await talk(stream, pb.StreamRequest(frame=frame))
        assert not found.frame.errors
        expected = b"".join(alone[name].step(X[3 * at + row]) for row, name in enumerate(names))
        assert found.frame.y_raw == expected
        assert np.frombuffer(found.frame.step_index_raw, "<u8").tolist() == [at] * 3
    await server.served.ask("CloseSession", pb.CloseSessionRequest(session_id="b"))
    (found,) = await talk(stream, pb.StreamRequest(frame=every))
    assert [(error.entry, error.error.reason) for error in found.frame.errors] == [(2, "SESSION_NOT_FOUND")]
