"""One message encodes every answer of a stream: each answer has the bytes that a new message would have."""

from hypothesis import given, settings
from hypothesis import strategies as st
from streamcell.v1 import streamcell_pb2 as pb

from service.engine.work import INDEX_NEXT, Step
from service.servicers.streamcell.convert import StepResponseEncoder

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
UINT32S, UINT64S = st.integers(0, 2**32 - 1) | st.just(0), st.integers(0, 2**64 - 1) | st.just(0)
ANSWERS = st.lists(
    st.tuples(
        st.sampled_from(["", "a", "another-session"]),
        UINT32S,  # the session by number
        UINT64S,  # request_id
        st.integers(0, 2**63 - 1) | st.just(0),  # step_index
        st.integers(0, 2**63 - 1) | st.just(0),  # num_durable_steps
        st.lists(FLOATS, max_size=5),  # y: models differ in their outputs
        st.booleans(),  # whether it is a repeat
    ),
    min_size=1,
    max_size=12,
)


@given(ANSWERS)
@settings(max_examples=150, deadline=None)
def test_no_value_of_an_earlier_answer_is_in_a_later_one(answers):
    """Ids, numbers, indexes and predictions of any length are the answer's own, also if zero or empty."""
    encoder = StepResponseEncoder()
    for session_id, session, request_id, step_index, num_durable, y, is_repeat in answers:
        asked = pb.StepRequest(session_id=session_id, session=session, x=[9.0], step_index=7, model="m")
        request = pb.StreamRequest(request_id=request_id, step=asked)
        work = Step(0, 0, b"", 0, INDEX_NEXT, 0, print)
        work.step_index, work.y, work.is_repeat = step_index, y, is_repeat
        wanted = pb.StreamResponse(
            request_id=request_id,
            session_id=session_id,
            session=0 if session_id else session,
            step=pb.StepResponse(step_index=step_index, y=y, num_durable_steps=num_durable),
        )
        raw = encoder.encode(request, work, num_durable)
        assert pb.StreamResponse.FromString(raw) == wanted
        assert pb.StreamResponse.FromString(raw).WhichOneof("response") == "step"
        assert raw == wanted.SerializeToString()
