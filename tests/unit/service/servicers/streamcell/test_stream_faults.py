"""A fault while a stream answers ends that stream with INTERNAL; nobody waits for the answer."""

import numpy as np
import pytest
from streamcell.v1 import streamcell_pb2 as pb

from service.servicers.streamcell.convert import StepResponseEncoder
from service.servicers.streamcell.frames import ActiveFrame
from tests import fakes
from tests.fakes import Served, answer

X = np.random.default_rng(6).standard_normal((2, 2)).astype(np.float32)
FAULT_TEXT = "the sealed words of a fault"


def fail(*_, **__):
    """Raises what no caller may hear of."""
    raise MemoryError(FAULT_TEXT)


STEP = pb.StreamRequest(step=pb.StepRequest(session_id="a", x=X[0]))
FRAME = pb.StreamRequest(frame=pb.Frame(session_ids=["a"], x_raw=X[0].tobytes()))


@pytest.mark.parametrize(
    ("request_", "part", "method"),
    [(STEP, StepResponseEncoder, "encode"), (FRAME, ActiveFrame, "response")],
    ids=["step", "frame"],
)
async def test_the_stream_ends_and_others_go_on(monkeypatch, request_, part, method):
    """The step is applied, its answer is lost, and the client hears of it: it asks again elsewhere."""
    served = Served()
    for name in "ab":
        await served.open(name)
    stream, other = served.stream(), served.stream()
    with monkeypatch.context() as patched:
        patched.setattr(part, method, fail)
        stream.receive(request_.SerializeToString())
        status = await fakes.ending(stream)
    assert status.reason == "INTERNAL"
    assert FAULT_TEXT not in status.message
    other.receive(pb.StreamRequest(step=pb.StepRequest(session_id="b", x=X[1])).SerializeToString())
    assert (await answer(other)).step.step_index == 0
    session = await served.ask("GetSession", pb.GetSessionRequest(session_id="a"))
    assert session.session.next_step_index == 1
