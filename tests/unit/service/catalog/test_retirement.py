"""Versions that retire: they leave memory with their last session, and take nothing with them."""

import shutil
import weakref

import numpy as np
from streamcell.v1 import streamcell_pb2 as pb

from tests.fakes import talk
from tests.folder_of_models import NAME, X


async def test_an_old_version_leaves_with_its_last_session(serve_folder, logged):
    """Not before; then its memory is free, and its sample is gone from the metrics."""
    server = await serve_folder()
    await server.served.open("s")
    await server.notice("2")
    server.retire()
    assert f"{NAME}/1" in server.statuses()
    gone = weakref.ref(server.catalog.versions.get(f"{NAME}/1"))
    await server.served.ask("CloseSession", pb.CloseSessionRequest(session_id="s"))
    await server.check_unloaded(gone)
    assert server.statuses() == {f"{NAME}/2": "SERVING"}
    assert logged("model_left") == [{"model": f"{NAME}/1"}]
    assert (server.model_info("1"), server.model_info("2")) == (None, 1)


async def test_the_end_of_a_session_is_remembered_after_its_version_left(serve_folder):
    """A session that expired is SESSION_EXPIRED still."""
    server = await serve_folder()
    await server.served.open("s")
    await server.notice("2")
    session = server.catalog.find("", "s")
    session.engine.residents.expire(session.slot)
    server.retire()
    assert server.statuses() == {f"{NAME}/2": "SERVING"}
    refusal = await server.served.refused("Step", pb.StepRequest(session_id="s", x=X[0]))
    assert refusal.reason == "SESSION_EXPIRED"


async def test_the_last_version_of_a_name_stays(serve_folder):
    """Though its folder is gone: some version has to serve."""
    server = await serve_folder()
    server.put("1", name="another")
    shutil.rmtree(server.path / NAME / "1")
    for _ in range(3):
        await server.models.look()
        server.retire()
    assert server.statuses()[f"{NAME}/1"] == "SERVING"


async def test_a_frame_may_have_sessions_of_two_versions(serve_folder):
    """A gateway binds sessions that it opened before and after; each entry runs on its own version."""
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
