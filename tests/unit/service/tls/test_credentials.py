"""What the TLS files must hold."""

import datetime
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from service.config import Config
from service.tls.credentials import UnusableFileError, read
from tests.certificates import Authority, Issued, common_name

NOW = time.time()
DAY = 86_400.0


def files(folder, issued, client_ca=None):
    """Returns settings that name files with these contents."""
    cert, key = issued.save(folder, "server")
    given = {"tls_cert": cert, "tls_key": key}
    if client_ca is not None:
        (folder / "ca.pem").write_bytes(client_ca)
        given["tls_client_ca"] = str(folder / "ca.pem")
    return Config(**given)


def pem(key, encryption=None):
    """Returns a private key in PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        encryption or serialization.NoEncryption(),
    )


def issued_to(key):
    """Returns a certificate of a key of any kind, with the key."""
    now = datetime.datetime.now(datetime.UTC)
    by = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(common_name("localhost"))
        .issuer_name(common_name("somebody"))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .sign(by, hashes.SHA256())
    )
    return Issued(certificate.public_bytes(serialization.Encoding.PEM), pem(key))


def problem(settings, now=NOW):
    """Returns the flag at fault, and why."""
    with pytest.raises(UnusableFileError) as caught:
        read(settings, now)
    assert str(caught.value) == f"{caught.value.flag}: {caught.value.path}: {caught.value.problem}"
    return caught.value.flag, caught.value.problem


def end_of(certificate):
    """Returns the end of a certificate's time, in Unix seconds."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()


class TestRead:
    """What is read."""

    def test_certificates_key_and_authorities(self, tmp_path):
        """The bytes are those of the files; the first end of each file is told."""
        authority, old = Authority(), Authority("old")
        issued = authority.server(days=30)
        chain = Issued(issued.certificate + authority.pem, issued.key)
        settings = files(tmp_path, chain, authority.pem + old.pem)
        found = read(settings, NOW)
        assert (found.chain, found.key) == (chain.certificate, chain.key)
        assert found.client_ca == authority.pem + old.pem
        assert list(found.ends) == [settings.tls_cert, settings.tls_client_ca]
        # The authority's own certificate is in the chain, and ends before the server's.
        assert found.ends[settings.tls_cert] == end_of(authority.pem) < end_of(issued.certificate)

    def test_without_clients_authorities(self, tmp_path):
        """Clients are then asked for no certificate."""
        settings = files(tmp_path, Authority().server())
        assert read(settings, NOW).client_ca is None

    @pytest.mark.parametrize(
        "key", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())]
    )
    def test_kinds_of_keys(self, tmp_path, key):
        """RSA, and the usual curves."""
        settings = files(tmp_path, issued_to(key))
        assert read(settings, NOW).key == pem(key)

    def test_one_authority_of_several_may_have_ended(self, tmp_path):
        """While authorities are replaced, the file holds old ones."""
        issued, authority = Authority().server(days=30), Authority()
        stale = Authority("stale").server(days=-1).certificate
        assert read(files(tmp_path, issued, stale + authority.pem), NOW).client_ca == stale + authority.pem

    def test_the_key_is_not_shown(self, tmp_path):
        """Neither in a log nor in a traceback."""
        assert "PRIVATE" not in repr(read(files(tmp_path, Authority().server()), NOW))


class TestUnusable:
    """What is refused, and in which words."""

    def test_a_file_that_is_not_there(self, tmp_path):
        """Each flag is named."""
        settings = files(tmp_path, Authority().server(), b"")
        (tmp_path / "server.key").unlink()
        assert problem(settings) == ("--tls-key", "No such file or directory")
        (tmp_path / "server.pem").unlink()
        assert problem(settings) == ("--tls-cert", "No such file or directory")

    def test_something_else(self, tmp_path):
        """Text, a cut certificate, the key and the certificate exchanged."""
        issued = Authority().server()
        nothing = "it holds no certificate in PEM that can be read"
        for wrong in (b"", b"hello", issued.certificate[:200], issued.key, b"\xff\xfe"):
            assert problem(files(tmp_path, Issued(wrong, issued.key))) == ("--tls-cert", nothing)
            assert problem(files(tmp_path, issued, wrong)) == ("--tls-client-ca", nothing)
        no_key = "it holds no private key in PEM that can be read"
        for wrong in (b"", b"hello", issued.certificate, issued.key[:100]):
            assert problem(files(tmp_path, Issued(issued.certificate, wrong))) == ("--tls-key", no_key)

    def test_a_pair_that_does_not_fit(self, tmp_path):
        """The key of another certificate; the authority's certificate before the server's own."""
        authority = Authority()
        one, two = authority.server(), authority.server()
        flag, why = problem(files(tmp_path, Issued(one.certificate, two.key)))
        assert (flag, why) == (
            "--tls-key",
            f"the key is not that of the certificate in {tmp_path / 'server.pem'}",
        )
        flag, why = problem(files(tmp_path, Issued(authority.pem + one.certificate, one.key)))
        assert (flag, why) == (
            "--tls-cert",
            "the certificate of the server's key must come first, and its authorities after it",
        )

    def test_keys_that_a_front_cannot_use(self, tmp_path):
        """Encrypted, too short, of another kind."""
        key = ec.generate_private_key(ec.SECP256R1())
        secret = pem(key, serialization.BestAvailableEncryption(b"secret"))
        encrypted = Issued(issued_to(key).certificate, secret)
        assert "without a passphrase" in problem(files(tmp_path, encrypted))[1]
        short = issued_to(rsa.generate_private_key(65537, 1024))  # noqa: S505 (it is to be refused)
        assert "1024 bits is too short" in problem(files(tmp_path, short))[1]
        for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1())):
            assert "must be RSA, or of the curve" in problem(files(tmp_path, issued_to(key)))[1]

    def test_certificates_that_are_not_valid_now(self, tmp_path):
        """Ended, or not begun; of a chain, each one."""
        authority = Authority()
        assert "CN=localhost ended on 20" in problem(files(tmp_path, authority.server(days=-1)))[1]
        issued = authority.server(days=5)
        settings = files(tmp_path, Issued(issued.certificate + authority.pem, issued.key), authority.pem)
        assert "CN=an authority ended on 20" in problem(settings, NOW + 3 * DAY)[1]
        flag, why = problem(settings, NOW - 2 * DAY)
        assert flag == "--tls-cert"
        assert "is the clock right?" in why
        alone = files(tmp_path, issued, authority.pem)
        assert problem(alone, NOW + 3 * DAY)[0] == "--tls-client-ca"
