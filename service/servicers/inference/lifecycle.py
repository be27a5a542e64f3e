"""The states of an inference request under way, the events that move them, and the table of what may follow.

Knows neither sequences nor engines: `sequences` says what happens at each transition.
"""

import enum
from collections.abc import Mapping


class State(enum.Enum):
    """Where an inference request is in its life."""

    NEW = "new"  # not queued; a request that is refused at once stays so
    WAITING = "waiting"  # behind an earlier request of its sequence
    FETCHING = "fetching"  # its session is brought into memory, or its model is loaded
    SUBMITTED = "submitted"  # its steps are queued in the engine of its session, or run
    TAKING_OVER = "taking over"  # the same as FETCHING, for a restart whose session another server had
    RESUBMITTED = "resubmitted"  # the same as SUBMITTED, after the session was taken over
    ANSWERED = "answered"  # its caller has the result or the error
    WITHDRAWN = "withdrawn"  # its steps do not run: its caller is gone, or its time-out passed

    __hash__ = object.__hash__  # Enum's own is Python; every request looks up two transitions


class Event(enum.Enum):
    """What happens to an inference request."""

    BLOCK = "block"  # an earlier request of its sequence is to be answered first
    FETCH = "fetch"  # its session or its model is not in memory
    SUBMIT = "submit"  # its session was found
    FENCE = "fence"  # it restarts a session that another server has, as the store found
    ANSWER = "answer"  # it has its result or its error
    WITHDRAW = "withdraw"  # its caller is gone
    TIME_OUT = "time out"  # its time-out passed before its steps began

    __hash__ = object.__hash__


# By state, the events that can happen, and the state that follows each. A table in a table: every request
# looks up two transitions, and one key of state and event would take twice as long.
TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.NEW: {
        Event.BLOCK: State.WAITING,
        Event.FETCH: State.FETCHING,
        Event.SUBMIT: State.SUBMITTED,
    },
    State.WAITING: {
        Event.BLOCK: State.WAITING,  # in its turn it may have to wait for the next one
        Event.FETCH: State.FETCHING,
        Event.SUBMIT: State.SUBMITTED,
        Event.ANSWER: State.ANSWERED,
        Event.WITHDRAW: State.WITHDRAWN,
        Event.TIME_OUT: State.WITHDRAWN,
    },
    State.FETCHING: {
        Event.FETCH: State.FETCHING,  # the session may be gone again
        Event.SUBMIT: State.SUBMITTED,
        Event.ANSWER: State.ANSWERED,
        Event.WITHDRAW: State.WITHDRAWN,
        Event.TIME_OUT: State.WITHDRAWN,
    },
    State.SUBMITTED: {
        Event.FENCE: State.TAKING_OVER,  # once: the second time the error is the answer
        Event.ANSWER: State.ANSWERED,
        Event.WITHDRAW: State.WITHDRAWN,
        Event.TIME_OUT: State.WITHDRAWN,
    },
    State.TAKING_OVER: {
        Event.FETCH: State.TAKING_OVER,
        Event.SUBMIT: State.RESUBMITTED,
        Event.ANSWER: State.ANSWERED,
        Event.WITHDRAW: State.WITHDRAWN,
        Event.TIME_OUT: State.WITHDRAWN,
    },
    State.RESUBMITTED: {
        Event.FENCE: State.ANSWERED,
        Event.ANSWER: State.ANSWERED,
        Event.WITHDRAW: State.WITHDRAWN,
        Event.TIME_OUT: State.WITHDRAWN,
    },
    # A caller may go in the moment in which it is answered.
    State.ANSWERED: {Event.WITHDRAW: State.ANSWERED},
    State.WITHDRAWN: {Event.WITHDRAW: State.WITHDRAWN},
}
