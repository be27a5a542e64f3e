"""The window of a stream: numbers, order, room, rewinding."""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streamcell import Prediction, StreamcellError
from streamcell.window import Window

X = array("f", [1.0])


def test_steps_are_numbered_and_sent_in_order():
    """Numbers begin at the first index; each step is sent once."""
    window = Window(5, 3)
    window.append(X, None)
    window.append(X, 7)
    assert [(window.send_next().step_index), window.send_next().time_ns] == [5, 7]
    assert not window.has_unsent
    assert window.has_unanswered


def test_room_counts_what_was_not_given_back():
    """Unanswered steps and predictions not yet taken fill the window alike."""
    window = Window(0, 2)
    window.append(X, None)
    window.append(X, None)
    assert not window.has_room
    window.send_next()
    window.answer(Prediction(0, (1.0,)))
    assert not window.has_room
    assert window.take() == Prediction(0, (1.0,))
    assert window.has_room


@pytest.mark.parametrize("index", [1, 7])
def test_a_reply_out_of_order_is_refused(index):
    """Only the first unanswered step may be answered, and only once it was sent."""
    window = Window(0, 3)
    window.append(X, None)
    window.append(X, None)
    with pytest.raises(StreamcellError, match="none is due"):
        window.answer(Prediction(0, ()))
    window.send_next()
    window.send_next()
    with pytest.raises(StreamcellError, match="step 0 is due"):
        window.answer(Prediction(index, ()))


@settings(deadline=None)
@given(st.lists(st.sampled_from(["append", "send", "answer", "take", "rewind"]), max_size=60))
def test_whatever_happens_predictions_come_out_once_and_in_order(moves):
    """Under any interleaving, rewinds included, nothing is lost, doubled or swapped."""
    window, taken, answered = Window(3, 4), [], 3
    for move in moves:
        if move == "append" and window.has_room:
            window.append(X, None)
        elif move == "send" and window.has_unsent:
            assert window.send_next().step_index >= answered
        elif move == "answer" and window._num_sent:
            window.answer(Prediction(answered, ()))
            answered += 1
        elif move == "take" and window.has_answered:
            taken.append(window.take().step_index)
        elif move == "rewind":
            window.rewind()
    assert taken == list(range(3, 3 + len(taken)))
    assert len(window._unanswered) + len(window._answered) <= 4
