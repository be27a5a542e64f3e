"""The principal of a client certificate, by one rule for every front.

The rule follows RFC 6125, section 6.4.4: the subject alternative names come first, and the common name counts
only where there are none of a kind that names a client. Does not check a signature: TLS has done that.
"""

import functools
from typing import cast

from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

from service import errors
from service.errors import Reason

_MAX_NAME = 512  # characters: a principal is a part of every key in the store


class _UnusableError(Exception):
    """A certificate names no principal; the message says why."""


@functools.lru_cache(maxsize=4096)
def principal_of(pem: bytes) -> str:
    """Returns whom a certificate names: `uri:…` or `dns:…` for the one such alternative name, else `cn:…`.

    The kind is a part of the principal: a common name that looks like a host's name is not the host.

    Raises:
        StreamcellError: UNAUTHENTICATED, the certificate names nobody or several, or cannot be read.
    """
    try:
        return _principal(pem)
    except _UnusableError as unusable:
        problem = str(unusable)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        problem = "it cannot be read"
    raise errors.refusal(Reason.UNAUTHENTICATED, case="certificate", problem=problem)


def _principal(pem: bytes) -> str:
    certificate = x509.load_pem_x509_certificate(pem)
    uris, hosts = _alternative_names(certificate)
    common = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    kinds = (("uri", "URIs", uris), ("dns", "DNS names", hosts), ("cn", "common names", common))
    for kind, plural, names in kinds:
        if len(names) > 1:
            raise _UnusableError(f"it has {len(names)} {plural}, and one names a client")
        if names:
            return f"{kind}:{_checked(names[0])}"
    raise _UnusableError("it has no URI, no DNS name and no common name")


def _alternative_names(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """Returns the URIs and the DNS names among the subject alternative names."""
    try:
        found = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    except x509.ExtensionNotFound:
        return [], []
    found = cast(x509.SubjectAlternativeName, found)
    uris = found.get_values_for_type(x509.UniformResourceIdentifier)
    # The names of hosts have no case (RFC 4343).
    return uris, [name.lower() for name in found.get_values_for_type(x509.DNSName)]


def _checked(name: str) -> str:
    if not name.strip():
        raise _UnusableError("its name is empty")
    if len(name) > _MAX_NAME:
        raise _UnusableError(f"its name has {len(name)} characters, and the most is {_MAX_NAME}")
    if not name.isprintable():
        raise _UnusableError("its name has characters that cannot be printed")
    return name
