"""The states of an inference request: what follows each event, and which events cannot happen."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.servicers.inference.inference_request import InferenceRequest
from service.servicers.inference.lifecycle import TRANSITIONS, Event, State
from service.servicers.inference.parameters import read_parameters
from service.servicers.inference.tensors import single_row
from tests.fakes import Rig
from tests.inference import infer

PARAMETERS = read_parameters(Rig().engine, infer([[1, 2]]))
ENDS = {State.ANSWERED, State.WITHDRAWN}
# A row for each state, a column for each event; "" where the event cannot happen.
EVENTS = (
    Event.BLOCK, Event.FETCH, Event.SUBMIT, Event.FENCE, Event.ANSWER, Event.WITHDRAW, Event.TIME_OUT,
)  # fmt: skip
EXPECTED = {
    "new":         ("waiting", "fetching", "submitted", "", "", "", ""),
    "waiting":     ("waiting", "fetching", "submitted", "", "answered", "withdrawn", "withdrawn"),
    "fetching":    ("", "fetching", "submitted", "", "answered", "withdrawn", "withdrawn"),
    "submitted":   ("", "", "", "taking over", "answered", "withdrawn", "withdrawn"),
    "taking over": ("", "taking over", "resubmitted", "", "answered", "withdrawn", "withdrawn"),
    "resubmitted": ("", "", "", "answered", "answered", "withdrawn", "withdrawn"),
    "answered":    ("", "", "", "", "", "answered", ""),
    "withdrawn":   ("", "", "", "", "", "withdrawn", ""),
}  # fmt: skip


def request_in(state):
    """Returns a request in a state."""
    request = InferenceRequest(PARAMETERS, single_row(bytes(8)), "", arrived_ns=0, on_done=lambda _: None)
    request.state = state
    return request


def expected(state, event):
    """Returns the name of the state that follows, "" for a refusal."""
    return EXPECTED[state.value][EVENTS.index(event)]


class TestTable:
    """Each state with each event."""

    @pytest.mark.parametrize(
        ("state", "event"), list(itertools.product(State, Event)), ids=lambda each: each.value
    )
    def test_an_event_moves_to_the_state_of_the_table(self, state, event):
        """An event that cannot happen raises, names both, and leaves the state."""
        request = request_in(state)
        if expected(state, event):
            assert request.advance(event).value == expected(state, event)
            assert request.state.value == expected(state, event)
        else:
            with pytest.raises(ValueError, match=rf"{event} cannot happen in {state}"):
                request.advance(event)
            assert request.state is state

    def test_the_table_has_every_state(self):
        """No state is without a row, so that the lookup never fails."""
        assert set(TRANSITIONS) == set(State)


class TestLife:
    """Events in any order."""

    def test_a_request_begins_as_new(self):
        """Nothing has happened to a request that was made."""
        request = InferenceRequest(PARAMETERS, single_row(bytes(8)), "", arrived_ns=0, on_done=lambda _: None)
        assert request.state is State.NEW

    def test_every_state_can_be_reached(self):
        """From NEW, by the events of the table."""
        reached, due = set(), [State.NEW]
        while due:
            state = due.pop()
            reached.add(state)
            due.extend(set(TRANSITIONS[state].values()) - reached)
        assert reached == set(State)

    @given(st.lists(st.sampled_from(Event), max_size=40))
    def test_a_request_ends_once_and_takes_its_session_over_once(self, events):
        """Whatever happens: no state follows an end, and the second fence is the answer."""
        request, states = request_in(State.NEW), [State.NEW]
        for event in events:
            if event in TRANSITIONS[request.state]:
                request.advance(event)
                states.append(request.state)
        ends = [state for state in states if state in ENDS]
        assert len(set(ends)) <= 1
        assert not ends or states[-1] is ends[0]
        changes = [state for state, _ in itertools.groupby(states)]
        assert changes.count(State.TAKING_OVER) <= 1
        assert changes.count(State.RESUBMITTED) <= 1
