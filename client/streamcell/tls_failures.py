"""Why no connection came about, in words about TLS, as far as gRPC's own words show it.

gRPC says what its TLS library saw. A caller wants to know which side speaks what, and which option helps.
"""

from streamcell.values import Tls

_CLOSED = ("Socket closed", "Connection reset", "Broken pipe")
_WANTS_TLS = (
    "the server ended the connection before it said a word of gRPC: its port may take TLS (tls=Tls(), --tls)"
)
_NO_TLS = "the port does not speak TLS: connect without it (no tls, no --tls…), or to the port that has it"
_CERTIFICATES = (
    ("Hostname Verification Check failed", "the server's certificate is for another name{name}: connect by a"
     " name that it has, or say it: Tls(server_name=…), --tls-server-name"),
    ("certificate has expired", "the server's certificate has ended: the server needs a new one"),
    ("certificate is not yet valid", "the server's certificate is not valid yet: is this clock right?"),
    ("CERTIFICATE_VERIFY_FAILED", "the server's certificate is not signed by an authority that this client"
     " trusts: name its authority, Tls(root_certificates=…), --tls-ca"),
    ("Failed to create security handshaker", "this client's own TLS files cannot be used: see --tls-ca,"
     " --tls-cert and --tls-key"),
    ("WRONG_VERSION_NUMBER", _NO_TLS),
)  # fmt: skip
_WANTS_CERTIFICATE = (
    "the server ended the connection as soon as TLS was agreed on: it may ask for a client certificate,"
    " Tls(certificate_chain=…, private_key=…), --tls-cert and --tls-key"
)
_DISLIKES_CERTIFICATE = (
    "the server ended the connection as soon as TLS was agreed on: it may not take this client's certificate"
    " (--tls-cert), which has ended or is signed by an authority that the server does not trust"
)


def is_about_connecting(message: str) -> bool:
    """Returns whether gRPC's message says that no connection came about."""
    return message.startswith("failed to connect")


def why(message: str, tls: Tls | None, *, may_guess: bool = True) -> str:
    """Returns what may be wrong, for gRPC's message about a connection that failed; "" if it is not TLS.

    Args:
        message: gRPC's words.
        tls: what the client uses; None for plain text.
        may_guess: whether a connection that was just closed counts, too.
    """
    if not is_about_connecting(message):
        return ""
    is_closed = may_guess and any(sign in message for sign in _CLOSED)
    if tls is None:
        return _WANTS_TLS if is_closed or "http1.x server" in message else ""
    for sign, words in _CERTIFICATES:
        if sign in message:
            return words.format(name=f" than {tls.server_name}" if tls.server_name else " than the target")
    if is_closed or "TSI_DATA_CORRUPTED" in message:
        return _WANTS_CERTIFICATE if tls.certificate_chain is None else _DISLIKES_CERTIFICATE
    return ""


def explained(message: str, tls: Tls | None) -> str:
    """Returns gRPC's message, after what may be wrong."""
    words = why(message, tls)
    return f"{words} ({message})" if words else message
