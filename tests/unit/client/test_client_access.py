"""The options for TLS and tokens, which all commands share."""

import argparse

import pytest
from streamcell.access import VARIABLE, AccessError, access_of, add_options

from tests.certificates import Authority


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with an authority, a client's certificate and a token; it is the current one."""
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    authority.client("alice").save(tmp_path, "alice")
    authority.client("bob").save(tmp_path, "bob")
    (tmp_path / "token").write_text("t1\n")
    (tmp_path / "junk").write_text("two words")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*arguments, target="", environment=None):
    """Returns what a command line means."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    return access_of(parser.parse_args(arguments), target=target, environment=environment or {})


class TestAccess:
    """What the options mean."""

    def test_without_options_there_is_neither(self):
        """Plain text, and no token."""
        assert (read().tls, read().token) == (None, None)

    def test_tls_alone_trusts_the_system(self):
        """As browsers do."""
        assert read("--tls").tls.root_certificates is None

    def test_files_are_read(self, files):
        """Each option for TLS encrypts."""
        tls = read(
            "--tls-ca", "ca.pem", "--tls-cert", "alice.pem", "--tls-key", "alice.key",
            "--tls-server-name", "a.b",
        ).tls  # fmt: skip
        assert tls.root_certificates == (files / "ca.pem").read_bytes()
        assert tls.certificate_chain == (files / "alice.pem").read_bytes()
        assert tls.private_key == (files / "alice.key").read_bytes()
        assert tls.server_name == "a.b"
        assert read("--tls-server-name", "a.b").tls.server_name == "a.b"

    def test_a_token_comes_from_a_file_or_a_variable(self, files):
        """The file wins, and is read again when it changes."""
        token = read("--token-file", "token", environment={VARIABLE: "t0"}).token
        assert token.metadata() == (("authorization", "Bearer t1"),)
        (files / "token").write_text("another\n")
        assert token.metadata() == (("authorization", "Bearer another"),)
        assert read(environment={VARIABLE: "t0\n"}).token.metadata() == (("authorization", "Bearer t0"),)
        assert read(environment={VARIABLE: ""}).token is None

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--tls-ca", "none"], "--tls-ca: none: No such file or directory"),
            (["--tls-ca", "junk"], "--tls-ca: junk: it holds no certificate in PEM"),
            (["--tls-cert", "alice.pem"], "--tls-cert: goes with --tls-key"),
            (["--tls-key", "alice.key"], "--tls-cert: goes with --tls-key"),
            (["--tls-cert", "alice.pem", "--tls-key", "none"], "--tls-key: none: No such file or directory"),
            (
                ["--tls-cert", "alice.pem", "--tls-key", "bob.key"],
                "--tls-cert: alice.pem and bob.key are not a certificate and its key",
            ),
            (["--token-file", "none"], "--token-file: none: No such file or directory"),
            (["--token-file", "junk"], "--token-file: junk: token: it has a character that no token has"),
        ],
    )
    @pytest.mark.usefixtures("files")
    def test_what_cannot_be_followed_is_named(self, arguments, message):
        """The option and the file, in one line."""
        with pytest.raises(AccessError) as caught:
            read(*arguments)
        assert str(caught.value).startswith(message)

    @pytest.mark.usefixtures("files")
    def test_a_token_goes_to_another_machine_by_tls(self):
        """Or where somebody says that something else encrypts."""
        with pytest.raises(AccessError, match="would go to server:1 in plain text"):
            read("--token-file", "token", target="server:1")
        assert read("--token-file", "token", "--tls", target="server:1").token is not None
        assert read("--token-file", "token", "--token-in-plain-text", target="server:1").token is not None
        assert read("--token-file", "token", target="localhost:1").token is not None
