"""The options of commands for TLS and tokens, the same for every command that connects to a server.

Owns the names of the options, and the reading of the files that they name.
"""

import argparse
import dataclasses
import os
import pathlib
import ssl
from collections.abc import Mapping

from streamcell.channel import split_targets
from streamcell.errors import StreamcellError
from streamcell.token import Token, TokenFile
from streamcell.values import Tls

VARIABLE = "STREAMCELL_TOKEN"
FLAGS = {
    "tls": "encrypt; trust the system's authorities. Every other --tls option encrypts too",
    "tls_ca": "trust the authorities in this PEM file instead",
    "tls_cert": "show this certificate (PEM, with its authorities after it); needs --tls-key",
    "tls_key": "the private key of --tls-cert (PEM)",
    "tls_server_name": "the name that the server's certificate must have, if not the target's",
    "token_file": f"send the token in this file with every call; absent: the one in {VARIABLE}, if it is set",
    "token_in_plain_text": "send the token without TLS to other machines too, where something else encrypts",
}
"""What each option means, by its name in a program."""
METAVARS = dict.fromkeys(("tls_ca", "tls_cert", "tls_key", "token_file"), "FILE") | {
    "tls_server_name": "NAME"
}


class AccessError(Exception):
    """An option cannot be followed. The message is one line that begins with its name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Access:
    """How a client gets in: both are None where nothing is asked for."""

    tls: Tls | None = None
    token: Token | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a command."""
    group = parser.add_argument_group("TLS and tokens")
    for name, text in FLAGS.items():
        flag = "--" + name.replace("_", "-")
        if name in METAVARS:
            group.add_argument(flag, metavar=METAVARS[name], default="", help=text)
        else:
            group.add_argument(flag, action="store_true", help=text)


def access_of(options: object, *, target: str = "", environment: Mapping[str, str] | None = None) -> Access:
    """Returns what the options mean, with their files read.

    Args:
        options: an object whose attributes are the options.
        target: the server, or several with commas between, to which a token must be allowed to go.
        environment: the variables; absent: the process's.

    Raises:
        AccessError: a file cannot be read or holds something else, options do not fit together, or the token
            would go to another machine in plain text.
    """
    given = {name: getattr(options, name) for name in FLAGS}
    tls = _tls(given)
    token = _token(given, os.environ if environment is None else environment)
    if token is not None and target:
        try:
            token.check_way(split_targets(target), has_tls=tls is not None, metadata={})
        except StreamcellError as error:
            raise AccessError(error.message) from None
    return Access(tls=tls, token=token)


def _tls(given: dict[str, str]) -> Tls | None:
    if not any(value for name, value in given.items() if name.startswith("tls")):
        return None
    if bool(given["tls_cert"]) != bool(given["tls_key"]):
        raise AccessError("--tls-cert: goes with --tls-key")
    _check_files(given)
    read = {
        name: pathlib.Path(given[name]).read_bytes() if given[name] else None
        for name in ("tls_ca", "tls_cert", "tls_key")
    }
    return Tls(
        root_certificates=read["tls_ca"],
        certificate_chain=read["tls_cert"],
        private_key=read["tls_key"],
        server_name=given["tls_server_name"] or None,
    )


def _check_files(given: dict[str, str]) -> None:
    """Tries the files with the standard library's TLS, as gRPC would only say that a handshake failed."""
    for name in ("tls_ca", "tls_cert", "tls_key"):
        if given[name]:
            _check_readable(name, given[name])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if given["tls_ca"]:
        try:
            context.load_verify_locations(cafile=given["tls_ca"])
        except ssl.SSLError:
            raise AccessError(f"--tls-ca: {given['tls_ca']}: it holds no certificate in PEM") from None
    if given["tls_cert"]:
        try:
            context.load_cert_chain(given["tls_cert"], given["tls_key"], password="")
        except (ssl.SSLError, ValueError):
            files = f"{given['tls_cert']} and {given['tls_key']}"
            raise AccessError(
                f"--tls-cert: {files} are not a certificate and its key, in PEM and without a passphrase"
            ) from None


def _check_readable(name: str, path: str) -> None:
    try:
        pathlib.Path(path).read_bytes()
    except OSError as error:
        flag = "--" + name.replace("_", "-")
        raise AccessError(f"{flag}: {path}: {error.strerror}") from None


def _token(given: dict[str, str], environment: Mapping[str, str]) -> Token | None:
    path, in_plain_text = given["token_file"], bool(given["token_in_plain_text"])
    try:
        if path:
            return Token(TokenFile(path), in_plain_text=in_plain_text)
        if text := environment.get(VARIABLE, "").strip():
            return Token(text, in_plain_text=in_plain_text)
    except OSError as error:
        raise AccessError(f"--token-file: {path}: {error.strerror}") from None
    except StreamcellError as error:
        source = f"--token-file: {path}" if path else VARIABLE
        raise AccessError(f"{source}: {error.message}") from None
    return None
