"""Edge cases of methods and streams: who is refused, by which field, and what is left behind."""

import numpy as np
import pytest
from streamcell.v1 import streamcell_pb2 as pb

from service.catalog.catalog import Catalog
from service.catalog.versions import Versions
from service.engine.progress import TIME_ABSENT
from service.engine.work import INDEX_NEXT, Step
from service.errors import Reason, StreamcellError
from service.rpc.statuses import RefusedError
from service.servicers.streamcell.bindings import Bindings
from tests import fakes
from tests.fakes import Alone, Rig, Served, ending, talk


async def test_a_bound_session_that_ended_fails_its_entry_alone():
    """A frame over all bound sessions runs the other entries, also if the slot has another session now."""
    served = Served()
    await served.open("a")
    stream = served.stream()
    await talk(stream, pb.StreamRequest(config=pb.StreamConfig(session_ids=["a"])))
    await served.ask("CloseSession", pb.CloseSessionRequest(session_id="a"))
    await served.open("b")  # takes a's slot
    await talk(stream, pb.StreamRequest(config=pb.StreamConfig(session_ids=["b"])))
    (found,) = await talk(stream, pb.StreamRequest(frame=pb.Frame(x_raw=np.ones(4, "<f4").tobytes())))
    assert found.error.reason == ""
    assert [(one.entry, one.error.reason) for one in found.frame.errors] == [(0, "SESSION_NOT_FOUND")]
    assert np.frombuffer(found.frame.y_raw, "<f4")[2:].tobytes() == Alone(fakes.recurrence()).step([1, 1])


async def test_an_open_that_is_refused_leaves_no_session_behind():
    """OpenSession on a full queue either opens and answers, or is refused and opens no session."""
    served = Served(max_queue_steps=1)
    await served.open("a")
    (engine,) = served.engines
    engine.submit(
        Step(0, 0, bytes(8), time=TIME_ABSENT, index=INDEX_NEXT, arrived_ns=0, on_done=lambda _: None)
    )
    try:
        found = await served.ask("OpenSession", pb.OpenSessionRequest())
        assert found.created  # answering without queueing would be right, too
    except RefusedError:
        assert len(engine.sessions) == 1


async def test_a_drain_does_not_refuse_a_finished_stream():
    """A stream that was half-closed before the drain, and is fully answered, ends with OK."""
    served = Served()
    await served.open("a")
    stream = served.stream()
    request = pb.StreamRequest(step=pb.StepRequest(session_id="a", x=[1, 2]))
    stream.receive(request.SerializeToString())
    stream.half_close()
    served.catalog.is_draining = True
    served.router.drain()
    assert await ending(stream) is None


async def test_a_repeated_session_number_names_its_field():
    """A frame that names a session twice by number has the error at session_raw."""
    rig = Rig()
    catalog = Catalog(Versions([rig.engine]))
    catalog.open("", "a", "")
    bindings = Bindings(catalog, "", 5)
    bindings.bind(["a"])
    with pytest.raises(StreamcellError) as caught:
        bindings.select_by_number(np.array([0, 0]))
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert caught.value.metadata["field"] == "session_raw"
