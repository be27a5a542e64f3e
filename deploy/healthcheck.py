"""Asks a server's health service whether it is serving; the exit status says so.

Usage: healthcheck.py [HOST:PORT] [--tls …]. Asks directly, whatever proxy the environment names. For
containers; orchestrators that speak gRPC health checks need it not. Beside a server whose certificate is in
STREAMCELL_TLS_CERT it speaks TLS by itself, and trusts the certificate that the server shows, as both are on
one machine. Where the server asks for certificates (STREAMCELL_TLS_CLIENT_CA), it shows the one in
HEALTHCHECK_TLS_CERT and HEALTHCHECK_TLS_KEY. Health needs no token.
"""

import argparse
import os
import socket
import ssl
import sys
from collections.abc import Mapping

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from streamcell import Tls, access, tls_failures
from streamcell.access import AccessError
from streamcell.token import is_local

_TIMEOUT_SECONDS = 4.0
_CERT, _KEY = "HEALTHCHECK_TLS_CERT", "HEALTHCHECK_TLS_KEY"


def main(arguments: list[str], environment: Mapping[str, str]) -> int:
    """Returns 0 if the server at the target is serving, else 1 with a line that says why."""
    parser = argparse.ArgumentParser(prog="healthcheck.py", description="Asks whether a server is serving.")
    parser.add_argument("target", metavar="HOST:PORT", nargs="?", default="127.0.0.1:50051")
    access.add_options(parser)
    options = parser.parse_args(arguments)
    try:
        tls = access.access_of(options, environment={}).tls
        if tls is None and environment.get("STREAMCELL_TLS_CERT") and is_local(options.target):
            tls = _tls_of_this_server(options.target, environment)
    except (AccessError, OSError) as error:
        print(f"{options.target}: {error}", file=sys.stderr)
        return 1
    return _ask(options.target, tls)


def _ask(target: str, tls: Tls | None) -> int:
    with _channel(target, tls) as channel:
        try:
            health = health_pb2_grpc.HealthStub(channel)
            response = health.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            why = tls_failures.explained(error.details() or "", tls)
            print(f"{target}: {error.code().name}: {why}", file=sys.stderr)
            return 1
    if response.status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
        print(f"{target}: {name}", file=sys.stderr)
        return 1
    return 0


def _channel(target: str, tls: Tls | None) -> grpc.Channel:
    direct = ("grpc.enable_http_proxy", 0)
    if tls is None:
        return grpc.insecure_channel(target, [direct])
    credentials = grpc.ssl_channel_credentials(tls.root_certificates, tls.private_key, tls.certificate_chain)
    named = [("grpc.ssl_target_name_override", tls.server_name)] if tls.server_name else []
    return grpc.secure_channel(target, credentials, options=[direct, *named])


def _tls_of_this_server(target: str, environment: Mapping[str, str]) -> Tls:
    """Returns TLS for the certificate that the server shows, whatever name it has.

    Not for the one in its file, which may have been replaced by one that the server did not take.

    Raises:
        AccessError: a client certificate is needed and not there, or cannot be used.
        OSError: the server cannot be reached, or does not speak TLS.
    """
    cert, key = environment.get(_CERT, ""), environment.get(_KEY, "")
    if environment.get("STREAMCELL_TLS_CLIENT_CA") and not (cert and key):
        raise AccessError(
            "the server asks for client certificates (STREAMCELL_TLS_CLIENT_CA): name one for the health"
            f" check in {_CERT}, and its key in {_KEY}"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    own = {}
    if cert and key:
        try:
            context.load_cert_chain(cert, key, password="")
        except (OSError, ValueError) as error:
            raise AccessError(f"{_CERT}, {_KEY}: {cert}, {key}: {error}") from None
        own = {"certificate_chain": _content(cert), "private_key": _content(key)}
    shown = _shown_certificate(target, context)
    pem = ssl.DER_cert_to_PEM_cert(shown).encode()
    return Tls(root_certificates=pem, server_name=_name(x509.load_der_x509_certificate(shown)), **own)


def _shown_certificate(target: str, context: ssl.SSLContext) -> bytes:
    host, _, port = target.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_SECONDS) as raw:
        try:
            with context.wrap_socket(raw) as connection:
                return connection.getpeercert(binary_form=True) or b""
        except ssl.SSLError as error:
            problem = f"STREAMCELL_TLS_CERT is set, and the port does not speak TLS ({error.reason})"
            raise AccessError(problem) from None


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _name(certificate: x509.Certificate) -> str | None:
    """Returns a name that a certificate is for; None if it has none that gRPC compares."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(common[0].value) if common else None
    hosts = names.get_values_for_type(x509.DNSName)
    addresses = [str(each) for each in names.get_values_for_type(x509.IPAddress)]
    found = next(iter(hosts + addresses), None)
    return found.replace("*", "any", 1) if found else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
