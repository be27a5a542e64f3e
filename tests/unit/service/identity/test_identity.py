"""Whose a call is."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from service.config import Config
from service.errors import ConfigError, Reason, StreamcellError
from service.identity.identity import Identity
from service.identity.tokens import issue
from tests.certificates import Authority
from tests.unit.service.identity.test_signed_tokens import EC, NOW, pem, signed

AUTHORITY = Authority()
ALICE = AUTHORITY.client("alice").certificate


class Rig:
    """An identity over files, and what it counted."""

    def __init__(self, folder, *, end=float("inf"), now=1000.0, keys="", certificates=False):
        self.file, self.keys = folder / "tokens", folder / "keys.pem"
        self.token, self.record = issue("bob", end)
        self.file.write_text(self.record.line() + "\n")
        self.keys.write_text(keys)
        self.refused = []
        settings = Config(
            tokens=str(self.file),
            jwt_keys=str(self.keys) if keys else "",
            jwt_audience="streamcell" if keys else "",
            tls_cert="c" if certificates else "",
            tls_key="k" if certificates else "",
            tls_client_ca="a" if certificates else "",
        )
        self.now = now
        self.identity = Identity(settings, self.refused.append, now=lambda: self.now)

    def ask(self, authorization, certificate=None):
        """The principal."""
        return self.identity.principal(certificate, authorization)

    def why_refused(self, authorization, certificate=None):
        """Why a caller is refused; the error is the same for all."""
        with pytest.raises(StreamcellError) as caught:
            self.ask(authorization, certificate)
        assert caught.value.reason is Reason.UNAUTHENTICATED
        assert caught.value.message.startswith("the call shows no token that is valid here")
        assert caught.value.metadata == {}
        return self.refused[-1]


class TestTokens:
    """Tokens of the file, and signed ones."""

    def test_a_token_names_its_principal(self, tmp_path):
        """The scheme has no case."""
        rig = Rig(tmp_path)
        for scheme in ("Bearer", "bearer", "BEARER"):
            assert rig.ask(f"{scheme} {rig.token}".encode()) == "bob"
        assert rig.identity.is_needed

    def test_every_other_header_is_refused_with_one_message(self, tmp_path):
        """The count alone tells missing from unknown."""
        rig = Rig(tmp_path)
        token = rig.token.encode()
        for missing in (None, b"", b"Bearer", b"Bearer ", b"Basic " + token, token, b"\xff\xfe"):
            assert rig.why_refused(missing) == "missing"
        for unknown in (
            b"Bearer x",
            b"Bearer " + token[:-1],
            b"Bearer " + token + b",Bearer " + token,
            b"Bearer \xff",
        ):
            assert rig.why_refused(unknown) == "unknown"

    def test_a_token_ends_at_its_end(self, tmp_path):
        """By the wall clock, be it set back or forward."""
        rig = Rig(tmp_path, end=2000.0)
        header = f"Bearer {rig.token}".encode()
        assert rig.ask(header) == "bob"
        rig.now = 2000.0
        assert rig.why_refused(header) == "expired"
        rig.now = 1999.0
        assert rig.ask(header) == "bob"

    def test_a_signed_token_is_checked_once_and_ends_at_its_end(self, tmp_path):
        """The second time only its end counts; other keys check anew."""
        rig = Rig(tmp_path, now=NOW, keys=pem(EC))
        header = f"Bearer {signed()}".encode()
        assert rig.ask(header) == "alice"
        rig.identity._signed_tokens.principal = None  # would raise if it were asked again
        assert rig.ask(header) == "alice"
        rig.now = NOW + 3600 + 10
        assert rig.why_refused(header) == "expired"
        assert rig.ask(f"Bearer {rig.token}".encode()) == "bob"

    def test_with_tokens_a_certificate_names_nobody(self, tmp_path):
        """It only lets a caller connect; both kinds of names could else meet."""
        rig = Rig(tmp_path, certificates=True)
        assert rig.why_refused(None, ALICE) == "missing"
        assert rig.ask(f"Bearer {rig.token}".encode(), ALICE) == "bob"


class TestFiles:
    """Files that change."""

    def test_a_new_line_counts_and_a_line_that_is_gone_does_not(self, tmp_path):
        """At the next look."""
        rig = Rig(tmp_path)
        old, (new, record) = f"Bearer {rig.token}".encode(), issue("carol", float("inf"))
        rig.file.write_text(record.line())
        for file in rig.identity.files:
            file.look()
        assert rig.ask(f"Bearer {new}".encode()) == "carol"
        assert rig.why_refused(old) == "unknown"

    def test_new_keys_check_anew(self, tmp_path):
        """A token that the old keys had signed is refused, though it was taken before."""
        rig = Rig(tmp_path, now=NOW, keys=pem(EC))
        header = f"Bearer {signed()}".encode()
        assert rig.ask(header) == "alice"
        rig.keys.write_text(pem(ec.generate_private_key(ec.SECP384R1())))
        for file in rig.identity.files:
            file.look()
        assert rig.why_refused(header) == "unknown"

    def test_a_wrong_file_at_the_start_is_told_by_flag_and_line(self, tmp_path):
        """The server does not start."""
        (tmp_path / "tokens").write_text("alice\n")
        with pytest.raises(ConfigError, match=r"^--tokens: .*/tokens: line 1: 1 words"):
            Identity(Config(tokens=str(tmp_path / "tokens")), print)
        with pytest.raises(ConfigError, match=r"^--tokens: .*/none: No such file or directory"):
            Identity(Config(tokens=str(tmp_path / "none")), print)


class TestCertificates:
    """Without tokens the certificate names the caller."""

    def test_the_certificate_names_the_caller(self):
        """And a caller without one, or with one that names nobody, is refused."""
        refused = []
        identity = Identity(Config(tls_cert="c", tls_key="k", tls_client_ca="a"), refused.append)
        assert identity.is_needed
        assert identity.principal(ALICE, b"Bearer x") == "cn:alice"
        with pytest.raises(StreamcellError, match="names no client"):
            identity.principal(None, None)
        assert refused == ["certificate"]

    def test_without_either_nobody_is_asked(self):
        """Callers have no principal."""
        assert not Identity(Config(), print).is_needed


def test_a_token_never_stands_in_memory(tmp_path):
    """Only hashes are kept."""
    rig = Rig(tmp_path)
    rig.ask(f"Bearer {rig.token}".encode())
    assert rig.record.digest == hashlib.sha256(rig.token.encode()).digest()
    assert rig.token not in repr(vars(rig.identity)) + repr(vars(rig.identity._tokens))
