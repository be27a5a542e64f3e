"""Signed tokens (JSON Web Tokens, RFC 7519) of an identity provider, checked with its public keys.

PyJWT checks signatures, ends and audience; this module says which keys and which algorithms may do so. Only
algorithms with a public key are taken: with a shared secret, whoever can check a token could also make one.
Does not know how the keys' file is read.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_SIGNING = (RSAPublicKey, EllipticCurvePublicKey, Ed25519PublicKey, Ed448PublicKey)
_LEEWAY_SECONDS = 10  # clocks of an identity provider and a server differ by so much
_PEM_BEGIN = "-----BEGIN"
_PRIVATE = "PRIVATE KEY"
_PEM_BLOCK = re.compile(r"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)
_MAX_PRINCIPAL = 512


class InvalidTokenError(Exception):
    """A token is not valid; `why` is for the operator: unknown, or expired."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Key(NamedTuple):
    """A public key, its id ("" for none), and the algorithms that it may be used with."""

    kid: str
    public_key: Any
    algorithms: tuple[str, ...]


class SignedTokens:
    """The public keys of an identity provider.

    Args:
        keys: the keys.
        audience: the `aud` that a token must have.
        issuer: the `iss` that a token must have; "": any.
    """

    def __init__(self, keys: Sequence[Key], audience: str, issuer: str) -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer

    @classmethod
    def parse(cls, text: str, audience: str, issuer: str) -> "SignedTokens":
        """Returns the keys of a file's text: a JSON Web Key Set (RFC 7517), or public keys in PEM.

        Raises:
            ValueError: the text has no key that can be used, or a private key.
        """
        keys = _pem_keys(text) if _PEM_BEGIN in text else _set_keys(text)
        if not keys:
            raise ValueError("it has no public key that checks signatures")
        return cls(keys, audience, issuer)

    def principal(self, token: str) -> tuple[str, float]:
        """Returns the `sub` of a valid token, and the Unix time in seconds at which the token ends.

        Raises:
            InvalidTokenError: no key has signed the token, it has expired, or it is for another audience.
        """
        try:
            kid = jwt.get_unverified_header(token).get("kid", "")
        except jwt.InvalidTokenError:
            raise InvalidTokenError("unknown") from None
        for key in self._keys:
            if key.kid and kid and key.kid != kid:
                continue
            try:
                claims = self._claims(token, key)
            except (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError):
                raise InvalidTokenError("expired") from None
            except (jwt.PyJWTError, TypeError, ValueError):  # of another key, or for another audience
                continue
            return _checked(claims["sub"]), float(claims["exp"]) + _LEEWAY_SECONDS
        raise InvalidTokenError("unknown")

    def _claims(self, token: str, key: Key) -> dict[str, Any]:
        found: dict[str, Any] = jwt.decode(
            token,
            key.public_key,
            algorithms=list(key.algorithms),
            audience=self._audience,
            issuer=self._issuer or None,
            leeway=_LEEWAY_SECONDS,
            options={"require": ["exp", "sub"]},
        )
        return found


def _checked(principal: str) -> str:
    if not principal or len(principal) > _MAX_PRINCIPAL or not principal.isprintable():
        raise InvalidTokenError("unknown")
    return principal


def _pem_keys(text: str) -> list[Key]:
    if _PRIVATE in text:
        raise ValueError("it has a private key: give the public key, which is enough to check")
    blocks = [each[0] for each in _PEM_BLOCK.finditer(text)]
    if not blocks:
        raise ValueError("it has no public key: in PEM one begins with -----BEGIN PUBLIC KEY-----")
    return [Key("", _pem_key(block), _ALGORITHMS) for block in blocks]


def _pem_key(block: str) -> Any:
    try:
        key = load_pem_public_key(block.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("it has a public key that cannot be read") from None
    if not isinstance(key, _SIGNING):
        raise ValueError("it has a public key that checks no signatures: RSA, EC and Ed25519 keys do")
    return key


def _set_keys(text: str) -> list[Key]:
    try:
        listed = [dict(each) for each in json.loads(text)["keys"]]
    except (ValueError, LookupError, TypeError):
        raise ValueError("it is neither a JSON Web Key Set nor public keys in PEM") from None
    if any("d" in each for each in listed):
        raise ValueError("it has a private key: a key set for checking has public keys alone")
    keys = []
    for each in listed:
        try:
            key = jwt.PyJWK(each)
        except jwt.PyJWTError:
            continue  # a set may have keys of kinds that are not known here
        algorithms = (key.algorithm_name,) if "alg" in each else _ALGORITHMS
        if (
            each.get("use", "sig") == "sig"
            and each.get("kty") != "oct"
            and set(algorithms) <= set(_ALGORITHMS)
        ):
            keys.append(Key(str(each.get("kid", "")), key.key, algorithms))
    return keys
