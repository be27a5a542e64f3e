"""The responses of an echo, serialised in advance: one for every method that a load test calls.

They are as large as the real server's for one step. An echo names a model and accepts any session, so that
the same generator can load both; it stores no session. Knows no server library.
"""

from google.protobuf.message import Message
from streamcell.v1 import streamcell_pb2 as pb

from bench.cases import NUM_INPUTS

SERVICE = pb.DESCRIPTOR.services_by_name["StreamcellService"].full_name
STREAM = "Stream"
_STEP = pb.StepResponse(step_index=1000, y=[0.5])
_MODEL = pb.Model(
    name="reference", version="1", inputs=[pb.Variable(name=f"x{i}") for i in range(NUM_INPUTS)]
)
_UNARY: dict[str, Message] = {
    "ListModels": pb.ListModelsResponse(models=[_MODEL]),
    "OpenSession": pb.OpenSessionResponse(),
    "CloseSession": pb.CloseSessionResponse(),
    "Step": _STEP,
}
UNARY = {name: message.SerializeToString() for name, message in _UNARY.items()}
# The responses to the first message of a stream, and to all others.
CONFIGURED = pb.StreamResponse(config=pb.StreamConfigured()).SerializeToString()
STREAM_STEP = pb.StreamResponse(step=_STEP).SerializeToString()
