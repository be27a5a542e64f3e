"""Channels for what precedes a load, with TLS and a token where the options name them. Knows no method."""

import grpc
from streamcell import proxies, tls_failures
from streamcell.access import Access

from loadtest.errors import LoadtestError


def open_channel(target: str, access: Access) -> grpc.Channel:
    """Returns a channel that connects when it is first used."""
    tls, options = access.tls, proxies.direct_options(target)
    if tls is None:
        return grpc.insecure_channel(target, options)
    credentials = grpc.ssl_channel_credentials(tls.root_certificates, tls.private_key, tls.certificate_chain)
    named = [("grpc.ssl_target_name_override", tls.server_name)] if tls.server_name else []
    return grpc.secure_channel(target, credentials, options=[*options, *named])


def metadata_of(access: Access) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of a call."""
    return access.token.metadata() if access.token is not None else ()


def failure(target: str, access: Access, error: grpc.RpcError) -> LoadtestError:
    """Returns the error for a call that failed."""
    details = error.details() or ""
    return LoadtestError(f"{target}: {tls_failures.explained(details, access.tls)}")
