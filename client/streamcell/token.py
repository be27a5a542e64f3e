"""Bearer tokens: where a token comes from, and over which ways it may go.

A token is asked for at every call, so that a new one is used as soon as it is there. Without TLS it goes to
this machine alone, unless somebody asks for more. Knows no channel.
"""

import ipaddress
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from streamcell.errors import invalid

AUTHORIZATION = "authorization"
_LOCAL = ("unix:", "unix-abstract:")
_NAMES = ("dns:", "ipv4:", "ipv6:")


class Token:
    """A token for every call of a client.

    Args:
        source: the token, or a function that returns the one to use now. The function is called for every
            call and stream, in the event loop, so it must be quick; what it raises reaches the caller.
        in_plain_text: sends the token without TLS to other machines too. Whoever listens on the way can then
            use it; for networks where something else encrypts.
    """

    def __init__(self, source: str | Callable[[], str], *, in_plain_text: bool = False) -> None:
        self._source = source
        self._in_plain_text = in_plain_text
        if isinstance(source, str):
            _check(source)

    def check_way(self, targets: Iterable[str], *, has_tls: bool, metadata: Mapping[str, str]) -> None:
        """Checks that the token may be sent.

        Raises:
            InvalidArgument: it would go to another machine in plain text, or the metadata has a token too.
        """
        if AUTHORIZATION in metadata:
            raise invalid("token", "the metadata has an authorization too: give one of both")
        if has_tls or self._in_plain_text:
            return
        for target in targets:
            if not is_local(target):
                raise invalid(
                    "token",
                    f"it would go to {target} in plain text: use TLS (tls=Tls(), --tls), or, where something"
                    " else encrypts the way, Token(…, in_plain_text=True), --token-in-plain-text",
                )

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns the metadata with the token to use now.

        Raises:
            InvalidArgument: the source returned what is no token.
        """
        token = self._source if isinstance(self._source, str) else self._source()
        return ((AUTHORIZATION, f"Bearer {_check(token)}"),)


Tokens: TypeAlias = "str | Callable[[], str] | Token | None"
"""The forms in which a client takes a token."""


def token_of(given: Tokens) -> Token | None:
    """Returns the token in the form that calls need; None without one."""
    return given if given is None or isinstance(given, Token) else Token(given)


class TokenFile:
    """Reads a token from a file, and reads it again when the file changes.

    A file that is away or empty while it is replaced changes nothing: the last token stays in use.

    Example:
        Client("server:50051", tls=Tls(), token=TokenFile("/run/secrets/streamcell-token"))

    Raises:
        OSError: the file cannot be read, and never could.
        InvalidArgument: the file holds no token, and never did.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = pathlib.Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._token = ""
        self._read()

    def __call__(self) -> str:
        """Returns the token."""
        try:
            self._read()
        except (OSError, ValueError):
            if not self._token:
                raise
        return self._token

    def _read(self) -> None:
        found = os.stat(self._path)
        version = found.st_mtime_ns, found.st_size, found.st_ino
        if version != self._seen:
            self._token = _check(self._path.read_text(encoding="utf-8", errors="replace").strip())
            self._seen = version


def is_local(target: str) -> bool:
    """Returns whether every address that a target names is this machine's loopback or a local socket."""
    if target.startswith(_LOCAL):
        return True
    scheme = next((each for each in _NAMES if target.startswith(each)), "")
    rest = target.removeprefix(scheme)
    if scheme == "dns:" and rest.startswith("//"):
        rest = rest[2:].partition("/")[2]  # "dns://SERVER/NAME"
    return all(_is_loopback(address) for address in rest.split(","))


def _is_loopback(address: str) -> bool:
    host = address.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check(token: str) -> str:
    """Returns a token that a header can hold."""
    if not isinstance(token, str) or not token:
        raise invalid("token", "there is none: the text is empty")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise invalid("token", "it has a character that no token has; is it the right file?")
    return token
