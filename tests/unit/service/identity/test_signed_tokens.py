"""Signed tokens of an identity provider."""

import base64
import hashlib
import hmac
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519

from service.identity.signed_tokens import InvalidTokenError, SignedTokens

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
KEYS = {"RS256": RSA, "PS512": RSA, "ES256": EC, "EdDSA": ED}
NOW = int(time.time())
CLAIMS = {"sub": "alice", "aud": "streamcell", "iss": "https://issuer.example", "exp": NOW + 3600}


def pem(key):
    """The public half in PEM."""
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(encoding, form).decode()


def jwk(key, **fields):
    """The public half as a JSON Web Key."""
    algorithm = {RSA: "RS256", EC: "ES256", ED: "EdDSA"}[key]
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {**made, **fields}


def signed(key=EC, algorithm="ES256", headers=None, **changes):
    """A token."""
    claims = {name: value for name, value in {**CLAIMS, **changes}.items() if value is not None}
    return jwt.encode(claims, key, algorithm, headers=headers)


def tokens(text, issuer=""):
    """The keys of a file, for our audience."""
    return SignedTokens.parse(text, "streamcell", issuer)


def set_of(*keys):
    """A JSON Web Key Set."""
    return json.dumps({"keys": list(keys)})


class TestKeys:
    """What a file may hold."""

    @pytest.mark.parametrize(("algorithm", "key"), KEYS.items())
    def test_keys_in_pem_and_in_a_key_set_check_tokens(self, algorithm, key):
        """RSA, elliptic curves and Edwards curves; sub and end come back."""
        token = signed(key, algorithm)
        everything = "".join(map(pem, (RSA, EC, ED)))
        fields = {} if algorithm == "PS512" else {"alg": algorithm}
        for text in (pem(key), everything, set_of(jwk(key, **fields)), set_of(*map(jwk, (RSA, EC, ED)))):
            principal, end = tokens(text).principal(token)
            assert (principal, end) == ("alice", NOW + 3600 + 10)

    def test_a_key_id_picks_the_key(self):
        """A token that names another key is not checked with this one; one that names none is."""
        known = tokens(set_of(jwk(EC, kid="a"), jwk(RSA, kid="b")))
        assert known.principal(signed(headers={"kid": "a"}))[0] == "alice"
        assert known.principal(signed())[0] == "alice"
        with pytest.raises(InvalidTokenError):
            known.principal(signed(headers={"kid": "c"}))

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("", "neither a JSON Web Key Set nor public keys in PEM"),
            ("[]", "neither a JSON Web Key Set"),
            ('{"keys": 3}', "neither a JSON Web Key Set"),
            ('{"keys": []}', "no public key that checks signatures"),
            (set_of({"kty": "oct", "k": "c2VjcmV0"}), "no public key"),
            (set_of({"kty": "new"}), "no public key"),
            (set_of(jwk(EC, use="enc")), "no public key"),
            (set_of({**jwk(EC), "d": "AAAA"}), "has a private key"),
            ("-----BEGIN PRIVATE KEY-----\n", "has a private key"),
            (
                "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
                "a public key that cannot be read",
            ),
            ("-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----", "key that cannot be read"),
            ("-----BEGIN CERTIFICATE-----\n", "in PEM one begins with -----BEGIN PUBLIC KEY-----"),
            (pem(x25519.X25519PrivateKey.generate()), "a public key that checks no signatures"),
            (pem(EC) + pem(x25519.X25519PrivateKey.generate()), "a public key that checks no signatures"),
        ],
    )
    def test_a_file_without_a_usable_key_is_refused(self, text, problem):
        """The message says what the file is not."""
        with pytest.raises(ValueError, match=problem):
            tokens(text)


class TestTokens:
    """What a token must be."""

    @pytest.mark.parametrize(
        ("token", "why"),
        [
            (signed(exp=NOW - 60), "expired"),
            (signed(nbf=NOW + 3600), "expired"),
            (signed(exp=None), "unknown"),
            (signed(sub=None), "unknown"),
            (signed(sub=""), "unknown"),
            (signed(sub="a\0b"), "unknown"),
            (signed(sub="x" * 600), "unknown"),
            (signed(aud="other"), "unknown"),
            (signed(aud=None), "unknown"),
            (signed(ec.generate_private_key(ec.SECP256R1())), "unknown"),
            (signed(iss="https://evil.example"), "unknown"),
            (signed(iss=None), "unknown"),
            (jwt.encode(CLAIMS, None, "none"), "unknown"),
            (signed()[:-2], "unknown"),
            ("a.b.c", "unknown"),
            ("", "unknown"),
        ],
    )
    def test_any_other_token_is_refused(self, token, why):
        """No end, no sub, another audience, another issuer, another key, no signature."""
        with pytest.raises(InvalidTokenError) as caught:
            tokens(pem(EC), "https://issuer.example").principal(token)
        assert caught.value.why == why

    def test_a_public_key_is_no_shared_secret(self):
        """The old confusion: a token signed by HMAC with the public key's text."""

        def part(value):
            return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

        body = part({"alg": "HS256", "typ": "JWT"}) + b"." + part(CLAIMS)
        mac = hmac.new(pem(RSA).encode(), body, hashlib.sha256).digest()
        forged = (body + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()
        for text in (pem(RSA), set_of(jwk(RSA))):
            with pytest.raises(InvalidTokenError):
                tokens(text).principal(forged)

    def test_clocks_may_differ_by_ten_seconds(self):
        """A token that ended five seconds ago is still taken."""
        assert tokens(pem(EC)).principal(signed(exp=time.time() - 5))[0] == "alice"
