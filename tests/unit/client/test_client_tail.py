"""The tail of a session: which steps it has, in which pieces, and which it drops."""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streamcell.convert import History, to_single
from streamcell.tail import Tail


def single(index, timed=False, width=1):
    """Returns a step whose values and time are its index."""
    return to_single(array("f", [float(index)] * width), index if timed else None)


def steps_of(tail, start=None, stop=None):
    """Returns the first values of a tail's steps."""
    start = tail.first_step_index if start is None else start
    stop = tail.next_step_index if stop is None else stop
    return [
        history.x[step * (len(history.x) // history.num_steps)]
        for history in tail.histories(start, stop)
        for step in range(history.num_steps)
    ]


def test_steps_come_back_in_order():
    """Single steps are gathered, and any range of them can be had."""
    tail = Tail(5, 100)
    for index in range(5, 25):
        tail.append(index, single(index))
    (history,) = tail.histories(7, 12)
    assert list(history.x) == [7.0, 8.0, 9.0, 10.0, 11.0]
    assert history.time is None
    assert steps_of(tail) == list(range(5, 25))
    assert steps_of(tail, 25, 25) == steps_of(tail, 20, 9) == []


def test_steps_of_different_kinds_are_apart():
    """What cannot be packed together comes in several histories."""
    tail = Tail(0, 100)
    tail.append(0, single(0, timed=True))
    tail.append(1, single(1, timed=True))
    tail.append(2, single(2))
    tail.append(3, single(3, width=2))
    histories = list(tail.histories(0, 4))
    assert [history.num_steps for history in histories] == [2, 1, 1]
    assert [history.time and list(history.time) for history in histories] == [[0, 1], None, None]
    assert steps_of(tail) == [0, 1, 2, 3]


def test_steps_sent_again_are_passed_over():
    """A piece that overlaps the tail adds only its new steps."""
    tail = Tail(0, 100)
    tail.append(0, History(array("f", range(6)), None, 6))
    tail.append(2, single(2))
    tail.append(4, History(array("f", range(4, 9)), None, 5))
    assert steps_of(tail) == list(range(9))


def test_a_history_of_the_caller_is_copied():
    """What the caller's array becomes later changes nothing."""
    x = array("f", [1.0])
    tail = Tail(0, 100)
    tail.append(0, to_single(x, None))
    x[0] = 7.0
    assert steps_of(tail) == [1.0]


def test_the_oldest_steps_are_dropped_beyond_the_bound():
    """The bound is exact in steps, and close in memory."""
    tail = Tail(0, 3000)
    for index in range(10_000):
        tail.append(index, single(index))
    assert (tail.first_step_index, tail.next_step_index) == (7000, 10_000)
    assert steps_of(tail) == list(range(7000, 10_000))
    assert sum(len(chunk.x) for chunk in tail._chunks) < 3000 + 1024


@pytest.mark.parametrize("durable", [0, 3, 5, 8, 20])
def test_durable_steps_are_dropped(durable):
    """The steps before it are dropped; the store cannot be ahead of what was sent."""
    tail = Tail(3, 100)
    for index in range(3, 8):
        tail.append(index, single(index))
    tail.trim(durable)
    assert steps_of(tail) == list(range(max(3, durable), 8))
    assert tail.next_step_index == 8


def test_a_position_outside_the_tail_empties_it():
    """A server ahead of what was sent, or behind the tail, can use none of its steps."""
    for place in (0, 2, 9):
        tail = Tail(3, 100)
        tail.append(3, single(3))
        tail.move_to(place)
        assert (tail.first_step_index, tail.next_step_index, steps_of(tail)) == (place, place, [])


MOVES = st.lists(
    st.tuples(st.sampled_from(["append", "trim", "move"]), st.integers(0, 40), st.booleans()), max_size=60
)


@settings(deadline=None)
@given(MOVES)
def test_the_tail_has_the_steps_that_it_names(moves):
    """Against a plain list: the same steps, whatever was appended, trimmed and cut."""
    tail, first, steps = Tail(0, 20), 0, []
    for move, number, timed in moves:
        end = first + len(steps)
        if move == "append":
            for index in range(end, end + number % 5):
                tail.append(index, single(index, timed))
            steps += range(end, end + number % 5)
            first, steps = max(first, first + len(steps) - 20), steps[-20:]
        elif move == "trim":
            gone = max(0, min(number, end) - first)
            first, steps = first + gone, steps[gone:]
            tail.trim(number)
        else:
            inside = first <= number <= end
            first, steps = (first, steps[: number - first]) if inside else (number, [])
            tail.move_to(number)
        assert (tail.first_step_index, tail.next_step_index) == (first, first + len(steps))
        assert steps_of(tail) == steps
