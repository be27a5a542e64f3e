"""What an echo answers: a response for every method that a load test calls, as bytes made before.

They are as large as the real server's for one step. So that the same generator can drive both, an echo has a
model's name and takes any session; it keeps none. Knows no server library.
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
CONFIGURED = pb.StreamResponse(
    config=pb.StreamConfigured()
).SerializeToString()  # to a stream's first message
STREAM_STEP = pb.StreamResponse(step=_STEP).SerializeToString()  # to all others
