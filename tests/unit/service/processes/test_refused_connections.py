"""Connections that TLS refuses, as the log tells of them, by a fake clock."""

import pytest

from service.processes.refused_connections import RefusedConnections


class Worker:
    """A worker with counts that the test sets."""

    def __init__(self, **counts):
        self.counts = counts

    async def tls_counts(self):
        """Returns the counts."""
        return dict(self.counts)


class Rig:
    """The counts of one worker, and a clock that moves while somebody sleeps."""

    def __init__(self, *, has_tls=True):
        self.seconds = 0.0
        self.workers = {0: Worker()}
        self.refused = RefusedConnections(
            self.workers, has_tls=has_tls, clock=lambda: self.seconds, sleep=self.sleep
        )

    async def sleep(self, seconds):
        """Moves the time on at once."""
        self.seconds += seconds


@pytest.fixture
def lines(caplog):
    """Returns what was logged since the last call: kind, connections."""

    def take():
        found = [(each.fields["kind"], each.fields["connections"]) for each in caplog.records]
        assert {each.getMessage() for each in caplog.records} <= {"connections_refused"}
        caplog.clear()
        return found

    return take


class TestRefusedConnections:
    """Looks at the counts."""

    @pytest.mark.parametrize(
        ("has_tls", "name", "kind", "flag"),
        [
            (True, "tls_not_found", "plain_text", "--tls"),
            (True, "fail_verify_no_cert", "no_certificate", "--tls-cert"),
            (True, "fail_verify_error", "bad_certificate", "--tls-client-ca"),
            (False, "tls_found", "tls", "--tls-cert"),
        ],
    )
    async def test_the_first_is_told_at_once(self, lines, caplog, has_tls, name, kind, flag):
        """In words that name what to change."""
        rig = Rig(has_tls=has_tls)
        rig.workers[0] = Worker(**{name: 1})
        await rig.refused.look()
        assert flag in caplog.records[0].fields["why"]
        assert lines() == [(kind, 1)]

    async def test_clients_of_the_right_kind_are_not_told(self, lines):
        """TLS on a port with TLS, plain text on one without."""
        for has_tls, name in ((True, "tls_found"), (False, "tls_not_found")):
            rig = Rig(has_tls=has_tls)
            rig.workers[0] = Worker(**{name: 5})
            await rig.refused.look()
        assert lines() == []

    async def test_further_ones_are_told_once_a_minute_with_their_number(self, lines):
        """However many there are."""
        rig = Rig()
        told = []
        for look in range(1, 26):
            rig.workers[0].counts = {"tls_not_found": 10 * look}
            await rig.refused.look()
            told += [(rig.seconds, *line) for line in lines()]
        assert told == [(5.0, "plain_text", 10), (65.0, "plain_text", 120), (125.0, "plain_text", 120)]

    async def test_workers_are_added_up_and_replaced_ones_count_from_zero(self, lines):
        """A worker that is gone has no counts, and forgets none."""
        rig = Rig()
        rig.workers.update({0: Worker(tls_not_found=3), 1: Worker(tls_not_found=4)})
        await rig.refused.look()
        assert lines() == [("plain_text", 7)]
        rig.workers[0].counts = {}
        rig.workers[1] = Worker(tls_not_found=2)
        rig.seconds += 60
        await rig.refused.look()
        assert lines() == [("plain_text", 2)]
        rig.workers[0].counts = {"tls_not_found": 4}
        rig.seconds += 60
        await rig.refused.look()
        assert lines() == [("plain_text", 1)]

    async def test_certificates_that_envoy_did_not_take_are_told(self, caplog):
        """The server has said that it took them."""
        rig = Rig()
        rig.workers[0] = Worker(update_rejected=2)
        await rig.refused.look()
        (line,) = caplog.records
        assert (line.getMessage(), line.fields["times"]) == ("certificates_not_taken", 2)
