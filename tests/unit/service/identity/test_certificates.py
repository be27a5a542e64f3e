"""Whom a certificate names."""

import pytest

from service.errors import Reason, StreamcellError
from service.identity.certificates import principal_of
from tests.certificates import Authority
from tests.subjects import SUBJECTS

AUTHORITY = Authority()


@pytest.mark.parametrize(
    ("subject", "names", "principal"), [row[1:] for row in SUBJECTS], ids=[s[0] for s in SUBJECTS]
)
def test_a_certificate_names_one_client_or_is_refused(subject, names, principal):
    """The one URI, else the one DNS name, else the one common name."""
    pem = AUTHORITY.issue(subject, *names).certificate
    if principal is not None:
        assert principal_of(pem) == principal
        return
    with pytest.raises(StreamcellError) as caught:
        principal_of(pem)
    assert caught.value.reason is Reason.UNAUTHENTICATED
    assert "alice" not in caught.value.message


def test_no_two_clients_of_the_table_share_a_principal_unless_they_share_the_name():
    """`Smith, Jane` is not `Smith, John`, and a common name is no host."""
    names = [principal for *_, principal in SUBJECTS if principal is not None]
    assert (
        len(set(names))
        == len(names)
        - names.count("cn:alice")
        - names.count("cn:mallory")
        - names.count("uri:spiffe://a/b")
        - names.count("dns:h.example")
        + 4
    )


@pytest.mark.parametrize(
    "pem", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_bytes_that_are_no_certificate_are_refused(pem):
    """Nothing is a certificate by default."""
    with pytest.raises(StreamcellError, match="it cannot be read"):
        principal_of(pem)
