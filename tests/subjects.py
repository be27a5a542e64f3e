"""Awkward subjects of client certificates, and whom each stands for: one table for the rule and fronts."""

from cryptography import x509
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

CN, OU = NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME
ORGANIZATION, EMAIL = NameOID.ORGANIZATION_NAME, NameOID.EMAIL_ADDRESS


def _subject(*attributes):
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in attributes])


def _multi_valued(*attributes):
    """Returns a subject whose attributes stand in one relative name, as in CN=a+OU=b."""
    parts = [x509.NameAttribute(kind, value) for kind, value in attributes]
    return x509.Name([x509.RelativeDistinguishedName(parts)])


def _encoded(value, asn1_type):
    return x509.Name([x509.NameAttribute(CN, value, asn1_type)])


EMPTY = x509.Name([])
URI = x509.UniformResourceIdentifier
DNS = x509.DNSName

# What it is, subject, alternative names, principal (None: the certificate is refused).
SUBJECTS = [
    ("a common name", _subject((CN, "alice")), (), "cn:alice"),
    ("a comma in a unit", _subject((CN, "mallory"), (OU, "a, CN=alice")), (), "cn:mallory"),
    ("an escaped comma in a unit", _subject((CN, "mallory"), (OU, "a\\, CN=alice")), (), "cn:mallory"),
    ("the unit first", _subject((OU, "a, CN=alice"), (CN, "mallory")), (), "cn:mallory"),
    ("a comma in the name", _subject((CN, "Smith, Jane")), (), "cn:Smith, Jane"),
    ("another Smith", _subject((CN, "Smith, John")), (), "cn:Smith, John"),
    ("a slash", _subject((CN, "a/CN=alice")), (), "cn:a/CN=alice"),
    ("plus and equals", _subject((CN, "a+OU=b")), (), "cn:a+OU=b"),
    ("quotes and semicolons", _subject((CN, 'a";Cert="b;c\\"')), (), 'cn:a";Cert="b;c\\"'),
    ("a hash and spaces", _subject((CN, " #alice ")), (), "cn: #alice "),
    ("upper case", _subject((CN, "Alice")), (), "cn:Alice"),
    ("a name that looks like a host", _subject((CN, "dns:a.example")), (), "cn:dns:a.example"),
    ("several attributes in one relative name", _multi_valued((CN, "alice"), (OU, "x")), (), "cn:alice"),
    ("UTF-8", _subject((CN, "Žofie 李")), (), "cn:Žofie 李"),
    ("BMPString", _encoded("Žofie", _ASN1Type.BMPString), (), "cn:Žofie"),
    ("the longest common name", _subject((CN, "x" * 64)), (), f"cn:{'x' * 64}"),
    ("very long units", _subject((CN, "alice"), *[(OU, "u" * 64)] * 20), (), "cn:alice"),
    ("a URI", _subject((CN, "alice")), (URI("spiffe://a/b"),), "uri:spiffe://a/b"),
    ("a URI before hosts", _subject((CN, "x")), (DNS("h.example"), URI("spiffe://a/b")), "uri:spiffe://a/b"),
    ("a host", _subject((CN, "alice")), (DNS("H.example"),), "dns:h.example"),
    ("an empty subject with a host", EMPTY, (DNS("h.example"),), "dns:h.example"),
    (
        "only an address beside the name",
        _subject((CN, "alice")),
        (x509.RFC822Name("a@b.example"),),
        "cn:alice",
    ),
    ("a wildcard host is a name like others", _subject((CN, "a")), (DNS("*.example"),), "dns:*.example"),
    ("an empty subject with a mail address", EMPTY, (x509.RFC822Name("a@b.example"),), None),
    ("two common names", _subject((CN, "alice"), (CN, "bob")), (), None),
    ("two common names, reversed", _subject((CN, "bob"), (CN, "alice")), (), None),
    ("two common names in one relative name", _multi_valued((CN, "alice"), (CN, "bob")), (), None),
    ("no common name", _subject((ORGANIZATION, "acme"), (EMAIL, "a@b.example")), (), None),
    ("two URIs", _subject((CN, "alice")), (URI("spiffe://a"), URI("spiffe://b")), None),
    ("two hosts", _subject((CN, "alice")), (DNS("a.example"), DNS("b.example")), None),
    ("a blank name", _subject((CN, "  ")), (), None),
    ("a NUL in the name", _subject((CN, "alice\0bob")), (), None),
    ("a line end in the name", _subject((CN, "alice\nbob")), (), None),
    ("a URI without end", _subject((CN, "alice")), (URI("spiffe://a/" + "x" * 600),), None),
]
