"""The unanswered tail: numbers, order, room, rewinding."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamcell import Prediction, StreamcellError
from streamcell.tail import Tail

X = array("f", [1.0])


def test_steps_are_numbered_and_sent_in_order():
    """Numbers begin at the first index; each step is sent once."""
    tail = Tail(5, 3)
    tail.append(X, None)
    tail.append(X, 7)
    assert [(tail.send_next().step_index), tail.send_next().time_ns] == [5, 7]
    assert not tail.has_unsent
    assert tail.has_unanswered


def test_room_counts_what_was_not_given_back():
    """Unanswered steps and predictions not yet taken fill the window alike."""
    tail = Tail(0, 2)
    tail.append(X, None)
    tail.append(X, None)
    assert not tail.has_room
    tail.send_next()
    tail.answer(Prediction(0, (1.0,)))
    assert not tail.has_room
    assert tail.take() == Prediction(0, (1.0,))
    assert tail.has_room


@pytest.mark.parametrize("index", [1, 7])
def test_a_reply_out_of_order_is_refused(index):
    """Only the first unanswered step may be answered, and only once it was sent."""
    tail = Tail(0, 3)
    tail.append(X, None)
    tail.append(X, None)
    with pytest.raises(StreamcellError, match="none is due"):
        tail.answer(Prediction(0, ()))
    tail.send_next()
    tail.send_next()
    with pytest.raises(StreamcellError, match="step 0 is due"):
        tail.answer(Prediction(index, ()))


@given(st.lists(st.sampled_from(["append", "send", "answer", "take", "rewind"]), max_size=60))
def test_whatever_happens_predictions_come_out_once_and_in_order(moves):
    """Under any interleaving, rewinds included, nothing is lost, doubled or swapped."""
    tail, taken, answered = Tail(3, 4), [], 3
    for move in moves:
        if move == "append" and tail.has_room:
            tail.append(X, None)
        elif move == "send" and tail.has_unsent:
            assert tail.send_next().step_index >= answered
        elif move == "answer" and tail._num_sent:
            tail.answer(Prediction(answered, ()))
            answered += 1
        elif move == "take" and tail.has_answered:
            taken.append(tail.take().step_index)
        elif move == "rewind":
            tail.rewind()
    assert taken == list(range(3, 3 + len(taken)))
    assert len(tail._unanswered) + len(tail._answered) <= 4
