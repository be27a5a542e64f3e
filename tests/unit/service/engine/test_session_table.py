"""Sessions in columns: their progress, remembered replies, fingerprints of inputs, and how they ended."""

import numpy as np
import pytest

from service.engine import endings, progress
from service.engine.progress import TIME_ABSENT
from service.errors import Reason
from tests.fakes import applied, session_table


@pytest.fixture
def sessions():
    """A table of eight slots, for two inputs and two outputs, with three replies remembered."""
    return session_table(8, 2, 2, 3)


def apply(sessions, slots, lengths, x, times=None, now_ns=7):
    """Applies steps whose predictions are the inputs, negated."""
    x = np.asarray(x, np.float32)  # (B, T, F)
    given = np.zeros(x.shape[:2], np.int64) if times is None else np.asarray(times, np.int64)
    sessions.apply(applied(slots, lengths, x, given_times=given, times=given, y=-x), now_ns)


def print_of(sessions, x, time=0):
    """Returns the fingerprint of one row."""
    return int(sessions.progress.fingerprints(np.array([x], np.float32), np.array([time], np.int64))[0])


class TestSessions:
    """Sessions open, close, restart and are found."""

    def test_a_session_opens_at_step_zero(self, sessions):
        """A new session is found by its key, is at step 0, and was last used now."""
        sessions.open("k", 5, 99)
        assert (sessions.find("k"), sessions.key(5), len(sessions)) == (5, "k", 1)
        assert (sessions.progress.next_step[5], sessions.progress.last_time[5], sessions.last_used[5]) == (
            0,
            0,
            99,
        )
        assert sessions.find("other") is None

    def test_a_closed_session_is_gone_and_its_slot_is_another_generation(self, sessions):
        """After a close the key finds no session, and the slot's generation is another."""
        sessions.open("k", 5, 0)
        before = int(sessions.generation[5])
        sessions.close(5)
        assert (sessions.find("k"), len(sessions)) == (None, 0)
        assert sessions.generation[5] == before + 1

    def test_a_reused_slot_starts_clean(self, sessions):
        """A slot's next session is at step 0, without a time and without the earlier session's replies."""
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

    def test_a_restart_forgets_steps_and_keeps_the_session(self, sessions):
        """A restarted session is at step 0 under the same key and generation."""
        sessions.open("k", 3, 0)
        apply(sessions, [3], [2], [[[1, 2], [3, 4]]], [[5, 6]])
        generation = int(sessions.generation[3])
        sessions.progress.restart(3)
        assert (sessions.progress.next_step[3], sessions.progress.last_time[3], sessions.find("k")) == (
            0,
            0,
            3,
        )
        assert sessions.generation[3] == generation

    def test_idle_sessions_are_those_not_used_since(self, sessions):
        """A session last used at the instant itself is not idle; closed sessions are not returned."""
        for slot, used in ((0, 10), (3, 20), (5, 30), (6, 5)):
            sessions.open(str(slot), slot, used)
        sessions.close(6)
        assert sorted(sessions.idle_since(20)) == [0]
        assert sorted(sessions.idle_since(21)) == [0, 3]
        assert session_table(4, 1, 1, 1).idle_since(10) == []


class TestProgress:
    """Applied steps move sessions on, and their replies are remembered."""

    def test_steps_move_counters_times_and_use(self, sessions):
        """A batch moves each of its sessions by that session's number of steps, and no other session."""
        for slot in (1, 4, 6):
            sessions.open(str(slot), slot, 0)
        apply(sessions, [6, 1], [1, 3], np.arange(12).reshape(2, 3, 2), [[5, 0, 0], [6, 7, 8]], now_ns=77)
        assert sessions.progress.next_step[[1, 4, 6]].tolist() == [3, 0, 1]
        assert sessions.progress.last_time[[1, 4, 6]].tolist() == [8, 0, 5]
        assert sessions.last_used[[1, 4, 6]].tolist() == [77, 0, 77]

    def test_only_the_last_replies_are_remembered(self, sessions):
        """The last three of five steps are remembered, with fingerprint and prediction."""
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

    def test_remembered_replies_survive_later_steps_of_all_sessions(self, sessions):
        """A remembered reply is a copy, which later steps do not change."""
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

    def test_a_batch_of_no_session_changes_nothing(self, sessions):
        """A batch without an applied row is allowed."""
        sessions.open("k", 0, 1)
        apply(sessions, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2, 2)))
        assert (sessions.progress.next_step[0], sessions.last_used[0]) == (0, 1)


class TestEndings:
    """Why sessions ended is remembered."""

    def test_expiry_is_remembered_until_the_session_is_opened_again(self, sessions):
        """An expired key differs from an unknown one; a closed key is unknown."""
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

    def test_the_memory_of_expired_keys_is_bounded(self, sessions, monkeypatch):
        """Only the latest expired keys are remembered."""
        monkeypatch.setattr(endings, "_MAX_REMEMBERED", 2)
        for key in "abc":
            sessions.open(key, 0, 0)
            sessions.end(0, Reason.SESSION_EXPIRED)
        assert [sessions.endings.of(key) is not None for key in "abc"] == [False, True, True]


class TestFingerprints:
    """The fingerprints of inputs."""

    def test_fingerprints_distinguish_inputs(self, sessions):
        """Another value, order, sign, time or missing time gives another fingerprint."""
        variants = [
            ([1, 2], 0), ([2, 1], 0), ([1, np.nextafter(np.float32(2), np.float32(3))], 0), ([-1, 2], 0),
            ([0, 0], 0), ([-0.0, 0], 0), ([1, 2], 1), ([1, 2], -1), ([1, 2], TIME_ABSENT),
        ]  # fmt: skip
        prints = [print_of(sessions, *variant) for variant in variants]
        assert len(set(prints)) == len(variants)
        assert print_of(sessions, [1, 2], 0) == prints[0]

    def test_fingerprints_do_not_depend_on_the_batch_or_the_machine(self, sessions):
        """A row has the same fingerprint alone, in a batch and from a view; weights are splitmix64's."""
        x = np.random.default_rng(3).standard_normal((40, 2)).astype(np.float32)
        times = np.arange(40)
        whole = sessions.progress.fingerprints(x, times)
        assert whole[::2].tolist() == sessions.progress.fingerprints(x[::2], times[::2].copy()).tolist()
        assert [print_of(sessions, row, at) for at, row in enumerate(x)] == whole.tolist()
        # Steele et al. 2014: the first three outputs from seed 0.
        reference = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
        assert progress._weights(3).tolist() == [value | 1 for value in reference]
