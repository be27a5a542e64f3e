"""What a server has for TLS, read from files and checked: certificates, key, clients' authorities.

Checks what the fronts need, so that all of them refuse the same files with the same words. Knows no front.
"""

import dataclasses
import datetime
import pathlib
from collections.abc import Mapping, Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from service.config import Config

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_LEAST_RSA_BITS = 2048


class UnusableFileError(Exception):
    """A file that TLS cannot use.

    Args:
        flag: the flag that names the file.
        path: the file.
        problem: what is wrong, in one line.
        is_early: whether time alone will mend it.
    """

    def __init__(self, flag: str, path: str, problem: str, *, is_early: bool = False) -> None:
        super().__init__(f"{flag}: {path}: {problem}")
        self.flag = flag
        self.path = path
        self.problem = problem
        self.is_early = is_early


@dataclasses.dataclass(frozen=True)
class ServerCredentials:
    """Everything for TLS, in PEM. `ends`: by file, the Unix time at which its first certificate ends."""

    chain: bytes
    key: bytes = dataclasses.field(repr=False)
    client_ca: bytes | None
    ends: Mapping[str, float]


def read(settings: Config, now: float) -> ServerCredentials:
    """Returns what the TLS files of the settings hold.

    Args:
        settings: settings with TLS.
        now: the Unix time in seconds.

    Raises:
        UnusableFileError: a file cannot be read, the certificate and the key do not fit, or a certificate is
            not valid now.
    """
    chain = _read("--tls-cert", settings.tls_cert)
    key = _read("--tls-key", settings.tls_key)
    certificates = _certificates("--tls-cert", settings.tls_cert, chain)
    for each in certificates:
        _check_time("--tls-cert", settings.tls_cert, each, now=now)
    _check_key(settings, key, certificates)
    ends = {settings.tls_cert: _first_end(certificates)}
    client_ca = None
    if settings.tls_client_ca:
        client_ca = _read("--tls-client-ca", settings.tls_client_ca)
        authorities = _certificates("--tls-client-ca", settings.tls_client_ca, client_ca)
        _check_authorities(settings.tls_client_ca, authorities, now=now)
        ends[settings.tls_client_ca] = _first_end(authorities)
    return ServerCredentials(chain, key, client_ca, ends)


def _read(flag: str, path: str) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise UnusableFileError(flag, path, str(error.strerror)) from None


def _certificates(flag: str, path: str, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise UnusableFileError(flag, path, "it holds no certificate in PEM that can be read") from None


def _check_time(flag: str, path: str, certificate: x509.Certificate, *, now: float) -> None:
    if now >= certificate.not_valid_after_utc.timestamp():
        ended = certificate.not_valid_after_utc.isoformat()
        raise UnusableFileError(flag, path, f"the certificate of {_name(certificate)} ended on {ended}")
    if now < certificate.not_valid_before_utc.timestamp():
        begins = certificate.not_valid_before_utc.isoformat()
        problem = f"the certificate of {_name(certificate)} begins on {begins}: is the clock right?"
        raise UnusableFileError(flag, path, problem, is_early=True)


def _check_authorities(path: str, authorities: Sequence[x509.Certificate], *, now: float) -> None:
    """Checks that one authority is valid now: while authorities are replaced, a file has old ones too."""
    problems = []
    for each in authorities:
        try:
            _check_time("--tls-client-ca", path, each, now=now)
        except UnusableFileError as error:
            problems.append(error)
    if len(problems) == len(authorities):
        raise problems[0]


def _check_key(settings: Config, pem: bytes, certificates: Sequence[x509.Certificate]) -> None:
    def unusable(problem: str) -> UnusableFileError:
        return UnusableFileError("--tls-key", settings.tls_key, problem)

    try:
        key = load_pem_private_key(pem, None)
    except TypeError:
        raise unusable("the key is encrypted; the server takes one without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise unusable("it holds no private key in PEM that can be read") from None
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < _LEAST_RSA_BITS:
            raise unusable(f"an RSA key of {key.key_size} bits is too short: {_LEAST_RSA_BITS} at least")
    elif not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise unusable("the key must be RSA, or of the curve P-256, P-384 or P-521")
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    fits = [_public_key(each) == public for each in certificates]
    if not any(fits):
        raise unusable(f"the key is not that of the certificate in {settings.tls_cert}")
    if not fits[0]:
        problem = "the certificate of the server's key must come first, and its authorities after it"
        raise UnusableFileError("--tls-cert", settings.tls_cert, problem)


def _public_key(certificate: x509.Certificate) -> bytes:
    """Returns a certificate's public key; no bytes if it is of a kind that cannot be read."""
    try:
        key = certificate.public_key()
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return b""


def _first_end(certificates: Sequence[x509.Certificate]) -> float:
    return min(each.not_valid_after_utc for each in certificates).timestamp()


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or f"serial number {certificate.serial_number:x}"


def iso(end: float) -> str:
    """Returns a Unix time as a text for people."""
    return datetime.datetime.fromtimestamp(end, datetime.UTC).isoformat()
