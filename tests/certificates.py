"""Certificates for tests: an authority, and what it signs, with any subject and any alternative names."""

import dataclasses
import datetime
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)


@dataclasses.dataclass(frozen=True)
class Issued:
    """A certificate and its key, both in PEM."""

    certificate: bytes
    key: bytes

    def save(self, folder: pathlib.Path, name: str) -> tuple[str, str]:
        """Writes both to a folder, and returns the paths of the certificate and of the key."""
        paths = (folder / f"{name}.pem", folder / f"{name}.key")
        for path, content in zip(paths, (self.certificate, self.key), strict=True):
            path.write_bytes(content)
        return str(paths[0]), str(paths[1])


def common_name(name: str) -> x509.Name:
    """Returns a subject with one common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class Authority:
    """A certificate authority."""

    def __init__(self, name: str = "an authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = common_name(name)
        self._certificate = (
            _builder(self._name, self._name, self._key.public_key(), days=2)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, subject: x509.Name, *names: x509.GeneralName, days: float = 2) -> Issued:
        """Returns a certificate for a subject with alternative names; one of negative days has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(subject, self._name, key.public_key(), days=days)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not list(subject))
        signed = builder.sign(self._key, hashes.SHA256())
        raw_key = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Issued(signed.public_bytes(serialization.Encoding.PEM), raw_key)

    def server(self, *, days: float = 2) -> Issued:
        """Returns a certificate for a server on this machine."""
        return self.issue(common_name("localhost"), x509.DNSName("localhost"), days=days)

    def client(self, name: str) -> Issued:
        """Returns a certificate whose only name is its common name."""
        return self.issue(common_name(name))


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: float):
    now = datetime.datetime.now(datetime.UTC)
    end = now + days * _DAY
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - _DAY)
        .not_valid_after(end)
    )
