"""Words about TLS, for what gRPC says. What it says today is tried with real servers in tests/integration."""

import grpc
import pytest
from streamcell import ConnectionLost, RetryPolicy, Tls
from streamcell.tls_failures import explained, why
from streamcell.v1 import streamcell_pb2 as pb

PREFIX = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:1: "
TRUSTING = Tls(root_certificates=b"pem")
SHOWING = Tls(certificate_chain=b"pem", private_key=b"pem")
VERIFY = "Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED: "


class TestWhy:
    """What may be wrong."""

    @pytest.mark.parametrize(
        ("message", "tls", "words"),
        [
            ("Socket closed", None, "its port may take TLS"),
            ("Trying to connect an http1.x server (HTTP status 400)", None, "its port may take TLS"),
            ("SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER", TRUSTING, "the port does not speak TLS"),
            (f"{VERIFY}unable to get local issuer certificate", TRUSTING, "--tls-ca"),
            (f"{VERIFY}self signed certificate", TRUSTING, "--tls-ca"),
            (f"{VERIFY}certificate has expired", TRUSTING, "certificate has ended"),
            (f"{VERIFY}certificate is not yet valid", TRUSTING, "clock"),
            ("UNAUTHENTICATED: Hostname Verification Check failed.", TRUSTING, "than the target: "),
            ("Hostname Verification Check failed.", Tls(server_name="a.b"), "than a.b: "),
            ("Failed to create security handshaker.", TRUSTING, "own TLS files"),
            ("Socket closed", TRUSTING, "may ask for a client certificate"),
            ("Unwrap failed (TSI_DATA_CORRUPTED)", TRUSTING, "may ask for a client certificate"),
            ("Socket closed", SHOWING, "may not take this client's certificate"),
            ("Unwrap failed (TSI_DATA_CORRUPTED)", SHOWING, "may not take this client's certificate"),
        ],
    )
    def test_words(self, message, tls, words):
        """The message of gRPC follows in brackets."""
        assert words in why(PREFIX + message, tls)
        assert explained(PREFIX + message, tls) == f"{why(PREFIX + message, tls)} ({PREFIX}{message})"

    @pytest.mark.parametrize("tls", [None, TRUSTING])
    def test_other_failures_have_none(self, tls):
        """Nobody listens; or a connection that was there broke."""
        refused = f"{PREFIX}Failed to connect to remote host: Connection refused"
        for message in (refused, "Socket closed", "Deadline Exceeded"):
            assert why(message, tls) == ""
            assert explained(message, tls) == message

    @pytest.mark.parametrize("tls", [None, TRUSTING])
    def test_a_closed_connection_is_a_guess(self, tls):
        """On a port that has worked before it means that the server ends."""
        assert why(f"{PREFIX}Socket closed", tls, may_guess=False) == ""
        assert why(f"{PREFIX}Connection reset by peer", tls, may_guess=False) == ""


class TestConnection:
    """What a connection remembers of failures."""

    async def test_the_first_explanation_is_kept_until_a_call_succeeds(self, connect, monkeypatch):
        """GRPC names one address of several; later ones may say no more than that nobody listens."""
        messages = iter(
            [f"{PREFIX}Socket closed", f"{PREFIX}Connection refused", None, f"{PREFIX}Socket closed"]
        )

        async def call(*_, **__):
            if (message := next(messages)) is not None:
                raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, (), (), message)
            return pb.ListModelsResponse()

        async with connect(retry=RetryPolicy(max_attempts=1)) as client:
            monkeypatch.setattr(client._connection._channel.stub, "ListModels", call)
            for is_explained in (True, True, None, False):
                if is_explained is None:
                    await client.models()
                    continue
                with pytest.raises(ConnectionLost) as caught:
                    await client.models()
                assert ("--tls" in caught.value.message) is is_explained
