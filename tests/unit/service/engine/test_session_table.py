"""Sessions in columns: where each stands, the replies kept, prints of inputs, and who expired."""

import numpy as np
import pytest

from service.engine import endings, progress
from service.engine.progress import TIME_ABSENT
from service.errors import Reason
from tests.fakes import applied, session_table


@pytest.fixture
def sessions():
    """Eight slots for sessions of two inputs and two outputs that keep three replies."""
    return session_table(8, 2, 2, 3)


def apply(sessions, slots, lengths, x, times=None, now_ns=7):
    """Applies steps whose predictions are the inputs, negated."""
    x = np.asarray(x, np.float32)  # (B, T, F)
    given = np.zeros(x.shape[:2], np.int64) if times is None else np.asarray(times, np.int64)
    sessions.apply(applied(slots, lengths, x, given_times=given, times=given, y=-x), now_ns)


def print_of(sessions, x, time=0):
    """Returns the print of one row."""
    return int(sessions.progress.fingerprints(np.array([x], np.float32), np.array([time], np.int64))[0])


def test_a_session_opens_at_step_zero(sessions):
    """A new session is found by its key, stands at 0 and counts as used now."""
    sessions.open("k", 5, 99)
    assert (sessions.find("k"), sessions.key(5), len(sessions)) == (5, "k", 1)
    assert (sessions.progress.next_step[5], sessions.progress.last_time[5], sessions.last_used[5]) == (
        0,
        0,
        99,
    )
    assert sessions.find("other") is None


def test_a_closed_session_is_gone_and_its_slot_is_another_generation(sessions):
    """After close the key finds nothing, and a number kept from before is recognised by its generation."""
    sessions.open("k", 5, 0)
    before = int(sessions.generation[5])
    sessions.close(5)
    assert (sessions.find("k"), len(sessions)) == (None, 0)
    assert sessions.generation[5] == before + 1


def test_a_reused_slot_starts_clean(sessions):
    """A slot's next session stands at 0, has no time, and none of the earlier session's replies."""
    sessions.open("old", 2, 0)
    apply(sessions, [2], [2], [[[1, 2], [3, 4]]], [[10, 20]])
    sessions.close(2)
    sessions.open("new", 2, 5)
    assert (sessions.progress.next_step[2], sessions.progress.last_time[2], sessions.last_used[2]) == (
        0,
        0,
        5,
    )
    apply(sessions, [2], [1], [[[9, 9]]])
    assert sessions.progress.remembered(2, 0)[1].tolist() == [-9, -9]


def test_steps_move_counters_times_and_use(sessions):
    """A batch moves each of its sessions by its own number of steps, and no other."""
    for slot in (1, 4, 6):
        sessions.open(str(slot), slot, 0)
    apply(sessions, [6, 1], [1, 3], np.arange(12).reshape(2, 3, 2), [[5, 0, 0], [6, 7, 8]], now_ns=77)
    assert sessions.progress.next_step[[1, 4, 6]].tolist() == [3, 0, 1]
    assert sessions.progress.last_time[[1, 4, 6]].tolist() == [8, 0, 5]
    assert sessions.last_used[[1, 4, 6]].tolist() == [77, 0, 77]


def test_the_last_replies_are_kept_and_no_more(sessions):
    """Of five steps the last three are kept, with print and prediction; earlier ones are forgotten."""
    sessions.open("k", 0, 0)
    x = np.arange(10).reshape(1, 5, 2)
    apply(sessions, [0], [5], x, [[10, 11, 12, 13, 14]])
    assert [sessions.progress.remembered(0, index) is None for index in range(5)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    for index in (2, 3, 4):
        fingerprint, y = sessions.progress.remembered(0, index)
        assert y.tolist() == [-2 * index, -2 * index - 1]
        assert fingerprint == print_of(sessions, x[0, index], 10 + index)


def test_kept_replies_survive_later_steps_of_the_session_and_of_others(sessions):
    """A kept reply is a copy; what comes later changes it in no way."""
    sessions.open("a", 0, 0)
    sessions.open("b", 1, 0)
    apply(sessions, [0], [1], [[[1, 2]]])
    first = sessions.progress.remembered(0, 0)[1]
    apply(sessions, [1, 0], [1, 1], [[[5, 5]], [[6, 6]]])
    apply(sessions, [0], [2], [[[7, 7], [8, 8]]])
    assert first.tolist() == [-1, -2]
    assert sessions.progress.remembered(0, 0) is None
    assert sessions.progress.remembered(0, 1)[1].tolist() == [-6, -6]
    assert sessions.progress.remembered(1, 0)[1].tolist() == [-5, -5]


def test_a_batch_of_no_session_changes_nothing(sessions):
    """A batch of which nothing was applied is allowed."""
    sessions.open("k", 0, 1)
    apply(sessions, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2, 2)))
    assert (sessions.progress.next_step[0], sessions.last_used[0]) == (0, 1)


def test_a_restart_forgets_steps_and_keeps_the_session(sessions):
    """A session put back to its start stands at 0 under the same key and generation."""
    sessions.open("k", 3, 0)
    apply(sessions, [3], [2], [[[1, 2], [3, 4]]], [[5, 6]])
    generation = int(sessions.generation[3])
    sessions.progress.restart(3)
    assert (sessions.progress.next_step[3], sessions.progress.last_time[3], sessions.find("k")) == (0, 0, 3)
    assert sessions.generation[3] == generation


def test_expiry_is_remembered_until_the_session_is_opened_again(sessions):
    """An expired key is told apart from an unknown one; a closed one is unknown."""
    sessions.open("k", 0, 0)
    sessions.open("closed", 1, 0)
    sessions.end(0, Reason.SESSION_EXPIRED)
    sessions.close(1)
    assert sessions.find("k") is None
    assert [sessions.endings.of(key) for key in ("k", "closed", "never")] == [
        Reason.SESSION_EXPIRED,
        None,
        None,
    ]
    sessions.open("k", 0, 0)
    assert sessions.endings.of("k") is None


def test_the_memory_of_expired_keys_is_bounded(sessions, monkeypatch):
    """Only the latest expired keys are remembered."""
    monkeypatch.setattr(endings, "_MAX_REMEMBERED", 2)
    for key in "abc":
        sessions.open(key, 0, 0)
        sessions.end(0, Reason.SESSION_EXPIRED)
    assert [sessions.endings.of(key) is not None for key in "abc"] == [False, True, True]


def test_idle_sessions_are_those_not_used_since(sessions):
    """A session last used at the instant itself is not idle; closed ones are nobody's."""
    for slot, used in ((0, 10), (3, 20), (5, 30), (6, 5)):
        sessions.open(str(slot), slot, used)
    sessions.close(6)
    assert sorted(sessions.idle_since(20)) == [0]
    assert sorted(sessions.idle_since(21)) == [0, 3]
    assert session_table(4, 1, 1, 1).idle_since(10) == []


def test_prints_tell_inputs_apart(sessions):
    """Another value, order, sign, time or missing time gives another print; the same input the same."""
    variants = [
        ([1, 2], 0), ([2, 1], 0), ([1, np.nextafter(np.float32(2), np.float32(3))], 0), ([-1, 2], 0),
        ([0, 0], 0), ([-0.0, 0], 0), ([1, 2], 1), ([1, 2], -1), ([1, 2], TIME_ABSENT),
    ]  # fmt: skip
    prints = [print_of(sessions, *variant) for variant in variants]
    assert len(set(prints)) == len(variants)
    assert print_of(sessions, [1, 2], 0) == prints[0]


def test_prints_do_not_depend_on_the_batch_or_the_machine(sessions):
    """A row's print is the same alone, in a batch, and from a view; weights are splitmix64's, made odd."""
    x = np.random.default_rng(3).standard_normal((40, 2)).astype(np.float32)
    times = np.arange(40)
    whole = sessions.progress.fingerprints(x, times)
    assert whole[::2].tolist() == sessions.progress.fingerprints(x[::2], times[::2].copy()).tolist()
    assert [print_of(sessions, row, at) for at, row in enumerate(x)] == whole.tolist()
    # Steele et al. 2014: the first three outputs from seed 0.
    reference = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert progress._weights(3).tolist() == [value | 1 for value in reference]
