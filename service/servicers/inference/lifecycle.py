"""The states of an inference request under way, the events, and the table of which state follows.

Knows neither sequences nor engines: `sequences` does what belongs to each transition.
"""

import enum
from collections.abc import Mapping


class State(enum.Enum):
    """Where an inference request is in its life."""

    NEW = "new"  # not queued; a request that is refused at once stays new
    WAITING = "waiting"  # behind an earlier request of its sequence
    FETCHING = "fetching"  # while its session is fetched, or its model is loaded
    SUBMITTED = "submitted"  # its steps are queued in an engine, or run
    TAKING_OVER = "taking over"  # like FETCHING, for a restart whose session another server had
    RESUBMITTED = "resubmitted"  # like SUBMITTED, after TAKING_OVER
    ANSWERED = "answered"  # the result or the error is with the caller
    WITHDRAWN = "withdrawn"  # the steps do not run: the caller is gone, or the time-out passed

    __hash__ = object.__hash__  # Enum's own is Python; every request looks up two transitions


class Event(enum.Enum):
    """What happens to an inference request."""

    BLOCK = "block"  # an earlier request blocks the sequence
    FETCH = "fetch"  # the session or the model is not in memory
    SUBMIT = "submit"  # the session was found
    FENCE = "fence"  # the store refused a restart: another server has the session
    ANSWER = "answer"  # the result or the error is there
    WITHDRAW = "withdraw"  # the caller is gone
    TIME_OUT = "time out"  # the time-out passed before the steps began

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
        Event.BLOCK: State.WAITING,  # behind the next request that blocks
        Event.FETCH: State.FETCHING,
        Event.SUBMIT: State.SUBMITTED,
        Event.ANSWER: State.ANSWERED,
        Event.WITHDRAW: State.WITHDRAWN,
        Event.TIME_OUT: State.WITHDRAWN,
    },
    State.FETCHING: {
        Event.FETCH: State.FETCHING,  # the session left memory again
        Event.SUBMIT: State.SUBMITTED,
        Event.ANSWER: State.ANSWERED,
        Event.WITHDRAW: State.WITHDRAWN,
        Event.TIME_OUT: State.WITHDRAWN,
    },
    State.SUBMITTED: {
        Event.FENCE: State.TAKING_OVER,  # once: after RESUBMITTED the error is the answer
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
