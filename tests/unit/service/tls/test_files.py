"""TLS files that change while a server runs."""

import time

import pytest
from cryptography import x509

from service.config import Config
from service.errors import ConfigError
from service.tls.files import TlsFiles
from tests.certificates import Authority, Issued

DAY = 86_400.0


class Rig:
    """Files, what was used of them, what was shown, and a clock."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = Authority()
        self.now = time.time()
        self.used = []
        self.shown = {}
        self.put(self.authority.server(days=1000))
        (folder / "ca.pem").write_bytes(self.authority.pem)
        names = {"tls_cert": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem"}
        self.settings = Config(**{name: str(folder / file) for name, file in names.items()})
        self.files = TlsFiles(
            self.settings, self.used.append, show_end=self.shown.__setitem__, now=lambda: self.now
        )

    def put(self, issued):
        """Replaces certificate and key."""
        issued.save(self.folder, "server")
        self.issued = issued


@pytest.fixture
def rig(tmp_path, caplog):
    """Files that were loaded."""
    caplog.set_level("INFO")
    made = Rig(tmp_path)
    made.files.load()
    caplog.clear()
    return made


def events(caplog):
    """The events that were logged, with the setting."""
    return [(record.getMessage(), record.fields["setting"]) for record in caplog.records]


class TestTlsFiles:
    """Looks at the files."""

    def test_they_are_used_at_first_and_after_a_change(self, rig, caplog):
        """Once each; ends are shown by file."""
        rig.files.look()
        assert [each.chain for each in rig.used] == [rig.issued.certificate]
        assert set(rig.shown) == {rig.settings.tls_cert, rig.settings.tls_client_ca}
        newer = rig.authority.server(days=2000)
        rig.put(newer)
        rig.files.look()
        rig.files.look()
        assert [each.chain for each in rig.used[1:]] == [rig.issued.certificate]
        end = x509.load_pem_x509_certificate(newer.certificate).not_valid_after_utc
        assert rig.shown[rig.settings.tls_cert] == end.timestamp()
        assert events(caplog)[-2:] == [("file_reloaded", "--tls-cert"), ("file_reloaded", "--tls-key")]

    def test_a_pair_is_used_once_it_fits(self, rig, caplog):
        """Between the change of the certificate and that of its key, the old pair stays in use."""
        new = rig.authority.server(days=100)
        rig.put(Issued(new.certificate, rig.issued.key))
        rig.files.look()
        rig.files.look()
        assert len(rig.used) == 1
        assert events(caplog) == [("file_not_reloaded", "--tls-key")]
        rig.put(new)
        rig.files.look()
        assert [(each.chain, each.key) for each in rig.used[1:]] == [(new.certificate, new.key)]

    def test_a_bad_file_changes_nothing_and_is_told_once(self, rig, caplog):
        """Gone, cut, ended; then the first pair again, which is in use."""
        first, end = rig.issued, rig.shown[rig.settings.tls_cert]
        for bad in (Issued(b"junk", first.key), rig.authority.server(days=-1)):
            rig.put(bad)
            for _ in range(3):
                rig.files.look()
        (rig.folder / "server.pem").unlink()
        for _ in range(3):
            rig.files.look()
        assert len(rig.used) == 1
        assert rig.shown[rig.settings.tls_cert] == end
        assert events(caplog) == [("file_not_reloaded", "--tls-cert")] * 3
        assert {record.fields["effect"] for record in caplog.records} == {"what was read before stays in use"}
        rig.put(first)
        rig.files.look()
        assert [each.chain for each in rig.used] == [first.certificate] * 2

    def test_a_certificate_that_begins_later_is_used_then(self, rig, caplog):
        """Though its file does not change; it is told once."""
        new = rig.authority.server(days=2000)
        rig.put(new)
        rig.now -= 2 * DAY
        rig.files.look()
        rig.files.look()
        assert len(rig.used) == 1
        assert events(caplog) == [("file_not_reloaded", "--tls-cert")]
        rig.now += 2 * DAY
        rig.files.look()
        assert [each.chain for each in rig.used[1:]] == [new.certificate]

    def test_a_use_that_raises_is_tried_again(self, rig, monkeypatch):
        """A disk that is full for a while, for example."""
        rig.put(rig.authority.server(days=2000))
        room = []

        def use(credentials):
            if not room:
                raise OSError("no space left")
            rig.used.append(credentials)

        monkeypatch.setattr(rig.files, "_use", use)
        with pytest.raises(OSError, match="no space left"):
            rig.files.look()
        room.append(True)
        rig.files.look()
        assert [each.chain for each in rig.used[1:]] == [rig.issued.certificate]

    def test_a_bad_file_at_the_start_is_an_error(self, tmp_path):
        """The server does not begin without TLS."""
        rig = Rig(tmp_path)
        rig.put(rig.authority.server(days=-1))
        with pytest.raises(ConfigError, match=r"^--tls-cert: .*server.pem: .* ended on"):
            rig.files.load()
        assert not rig.used

    def test_an_end_within_two_weeks_is_told(self, tmp_path, caplog):
        """At the start, and when such a certificate is taken."""
        rig = Rig(tmp_path)
        rig.put(rig.authority.server(days=13))
        (tmp_path / "ca.pem").write_bytes(rig.authority.server(days=15).certificate)
        rig.files.load()
        assert events(caplog) == [("certificate_ends_soon", "--tls-cert")]

    def test_an_end_that_comes_near_while_the_server_runs_is_told_once(self, rig, caplog):
        """No file changes."""
        rig.now += 985 * DAY
        rig.files.look()
        assert caplog.records == []
        rig.now += 2 * DAY
        for _ in range(3):
            rig.files.look()
        assert events(caplog) == [("certificate_ends_soon", "--tls-cert")]
