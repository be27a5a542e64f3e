"""What a caller shows of itself, taken out of a request's headers.

Envoy puts the certificate of a client into a header, and takes away a header of that name that a client sent.
Does not know whom a certificate or a token stands for.
"""

import functools
import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

CERTIFICATE_HEADER = b"x-forwarded-client-cert"
_CERTIFICATE = re.compile(rb'(?:^|;)Cert="([^"]*)"')


class Credentials(NamedTuple):
    """The client's certificate in PEM, and the header `authorization`; None for what is not there."""

    certificate: bytes | None
    authorization: bytes | None


def take_credentials(headers: dict[bytes, bytes], *, has_certificate: bool) -> Credentials:
    """Returns what a caller shows, and removes from the headers what Envoy put there.

    Args:
        headers: the request's headers.
        has_certificate: whether Envoy asks clients for certificates.
    """
    forwarded = headers.pop(CERTIFICATE_HEADER, None) if has_certificate else None
    certificate = None if forwarded is None else _certificate(forwarded)
    return Credentials(certificate, headers.get(b"authorization"))


@functools.lru_cache(maxsize=4096)
def _certificate(forwarded: bytes) -> bytes | None:
    found = _CERTIFICATE.search(forwarded)
    return unquote_to_bytes(found[1]) if found else None
