"""Whose a call is, by what the caller showed: a certificate, or a bearer token.

Owns the tokens and keys in use, and replaces them when their files change. Does not know calls or transports.
"""

import hashlib
import time
from collections.abc import Callable
from typing import Any

from service import errors
from service.config import Config
from service.errors import Reason, StreamcellError
from service.identity import certificates
from service.identity.signed_tokens import InvalidTokenError, SignedTokens
from service.identity.tokens import PREFIX, Tokens
from service.watched_files import WatchedFile

_MAX_CHECKED = 4096  # signed tokens whose signature need not be checked again
_SCHEME = b"bearer"

CountRefusal = Callable[[str], None]


class Identity:
    """The rule by which a caller gets its principal.

    Where there are tokens, a token alone says who the caller is, and a certificate only lets the caller
    connect; otherwise the certificate says it.

    Args:
        settings: where tokens and keys are.
        count_refusal: called with why a caller was refused: missing, unknown, expired, or certificate.
        now: the Unix time in seconds.

    Raises:
        ConfigError: a file cannot be read, or has something wrong.
    """

    def __init__(
        self, settings: Config, count_refusal: CountRefusal, *, now: Callable[[], float] = time.time
    ) -> None:
        self._count_refusal = count_refusal
        self._now = now
        self._has_certificates = bool(settings.tls_client_ca)
        self._has_tokens = bool(settings.tokens or settings.jwt_keys)
        self._tokens = Tokens([])
        self._signed_tokens: SignedTokens | None = None
        self._checked: dict[bytes, tuple[str, float]] = {}  # principal and end by the token's hash
        self.files: list[WatchedFile[Any]] = []
        """The files that tokens and keys come from; whoever owns this object looks at them."""
        if settings.tokens:
            self.files.append(WatchedFile("--tokens", settings.tokens, Tokens.parse, self._use_tokens))
        if settings.jwt_keys:

            def parse(text: str) -> SignedTokens:
                return SignedTokens.parse(text, settings.jwt_audience, settings.jwt_issuer)

            self.files.append(WatchedFile("--jwt-keys", settings.jwt_keys, parse, self._use_keys))
        for file in self.files:
            file.load()

    @property
    def is_needed(self) -> bool:
        """Whether callers must show who they are."""
        return self._has_tokens or self._has_certificates

    def principal(self, certificate: bytes | None, authorization: bytes | None) -> str:
        """Returns the caller's principal.

        Args:
            certificate: the client's certificate in PEM; None without one.
            authorization: the value of the header `authorization`; None without one.

        Raises:
            StreamcellError: UNAUTHENTICATED. Its message is the same for a token that is missing, wrong or
                expired: who guesses learns nothing.
        """
        if self._has_tokens:
            try:
                return self._principal_of_token(authorization)
            except InvalidTokenError as invalid:
                self._count_refusal(invalid.why)
                raise errors.refusal(Reason.UNAUTHENTICATED) from None
        try:
            return certificates.principal_of(certificate or b"")
        except StreamcellError:
            self._count_refusal("certificate")
            raise

    def _principal_of_token(self, authorization: bytes | None) -> str:
        scheme, _, credentials = (authorization or b"").partition(b" ")
        if scheme.lower() != _SCHEME or not credentials:
            raise InvalidTokenError("missing")
        token = credentials.strip().decode("ascii", "replace")
        if token.startswith(PREFIX) or self._signed_tokens is None:
            record = self._tokens.find(token)
            if record is None:
                raise InvalidTokenError("unknown")
            principal, end = record.principal, record.expires
        else:
            principal, end = self._check_signed(token, self._signed_tokens)
        if self._now() >= end:
            raise InvalidTokenError("expired")
        return principal

    def _check_signed(self, token: str, keys: SignedTokens) -> tuple[str, float]:
        """Returns the principal and the end of a signed token, whose signature is checked once."""
        digest = hashlib.sha256(token.encode()).digest()
        if (found := self._checked.get(digest)) is None:
            found = keys.principal(token)
            if len(self._checked) >= _MAX_CHECKED:
                self._checked.clear()
            self._checked[digest] = found
        return found

    def _use_tokens(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def _use_keys(self, keys: SignedTokens) -> None:
        self._signed_tokens = keys
        self._checked = {}
