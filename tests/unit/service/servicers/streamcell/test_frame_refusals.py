"""Why an entry of a frame fails is told truly, however the frame names its sessions."""

import numpy as np
import pytest
from streamcell.v1 import streamcell_pb2 as pb

from tests.fakes import talk

X = np.random.default_rng(6).standard_normal((2, 2)).astype(np.float32)


def frame(names, *, by):
    """Returns a frame of one step for each of two bound sessions, named by id, by number, or not at all."""
    request = pb.Frame(x_raw=X.tobytes())
    if by == "id":
        request.session_ids.extend(names)
    elif by == "number":
        request.session_raw = np.arange(2, dtype="<u4").tobytes()
    return pb.StreamRequest(frame=request)


async def bind(served, names):
    """Opens sessions, and returns a stream that they are bound to."""
    for name in names:
        await served.open(name)
    stream = served.stream()
    await talk(stream, pb.StreamRequest(config=pb.StreamConfig(session_ids=names)))
    return stream


async def refusals(stream, request):
    """Returns the reason of each entry that failed."""
    (found,) = await talk(stream, request)
    return {error.entry: error.error.reason for error in found.frame.errors} or found.error.reason


@pytest.mark.parametrize("by", ["id", "number", "binding"])
class TestOneOfTwo:
    """One session of a frame cannot run, and the other one does."""

    async def test_its_store_is_away(self, serve, by):
        """STORE_UNAVAILABLE: the session is there and comes back; to open it again would lose it."""
        served = await serve()
        stream = await bind(served, ["a", "b"])
        session = served.catalog.find("", "a")
        await served.catalog.persistence.wait_until_stored(session)
        session.engine.residents.evict(session.slot)
        served.store.trouble = "unplugged"
        assert await refusals(stream, frame(["a", "b"], by=by)) == {0: "STORE_UNAVAILABLE"}
        served.store.trouble = ""

    async def test_another_server_has_it(self, serve, by):
        """SESSION_FENCED: the client goes on there, or takes the session back."""
        served, other = await serve(), await serve()
        stream = await bind(served, ["a", "b"])
        await other.ask("OpenSession", pb.OpenSessionRequest(session_id="a", mode=pb.OPEN_MODE_RESUME))
        session = served.catalog.find("", "a")
        session.engine.residents.fence(session.slot)  # as the next write of the session does
        assert await refusals(stream, frame(["a", "b"], by=by)) == {0: "SESSION_FENCED"}

    async def test_its_client_closed_it(self, serve, by):
        """SESSION_NOT_FOUND."""
        served = await serve()
        stream = await bind(served, ["a", "b"])
        await served.ask("CloseSession", pb.CloseSessionRequest(session_id="a"))
        assert await refusals(stream, frame(["a", "b"], by=by)) == {0: "SESSION_NOT_FOUND"}


@pytest.mark.parametrize("by", ["id", "number", "binding"])
async def test_all_of_a_frame_away(serve, by):
    """The frame is refused as a whole, with the reason of its first session."""
    served = await serve()
    stream = await bind(served, ["a", "b"])
    for name in "ab":
        session = served.catalog.find("", name)
        await served.catalog.persistence.wait_until_stored(session)
        session.engine.residents.evict(session.slot)
    served.store.trouble = "unplugged"
    assert await refusals(stream, frame(["a", "b"], by=by)) == "STORE_UNAVAILABLE"
    served.store.trouble = ""
