"""Tokens: where they come from, and over which ways they go."""

import os

import pytest
from streamcell import Client, InvalidArgument, Tls, Token, TokenFile
from streamcell.token import is_local

LOCAL = [
    "localhost:50051", "LOCALHOST:1", "localhost", "127.0.0.1:50051", "127.8.9.1:1", "[::1]:50051", "::1",
    "dns:localhost:1", "dns:///localhost:1", "dns://1.1.1.1/127.0.0.1:1", "ipv4:127.0.0.1:1,127.0.0.2:2",
    "ipv6:[::1]:1", "unix:/run/streamcell.sock", "unix-abstract:streamcell",
]  # fmt: skip
ELSEWHERE = [
    "server:50051", "10.0.0.1:50051", "0.0.0.0:1", "[2001:db8::1]:1", "localhost.example:1", "",
    "127.0.0.1.example:1", "dns:///server:1", "dns://127.0.0.1/server:1", "ipv4:127.0.0.1:1,10.0.0.1:1",
    "ipv6:[::2]:1", "xds:///server", "vsock:1:2", ":50051", "//localhost:1",
]  # fmt: skip


class TestWays:
    """Where a token may go."""

    @pytest.mark.parametrize("target", LOCAL)
    def test_this_machine(self, target):
        """Over plain text too: nobody else is on the way."""
        assert is_local(target)

    @pytest.mark.parametrize("target", ELSEWHERE)
    def test_another_machine(self, target):
        """Also one whose name begins like this machine's, and what is not understood."""
        assert not is_local(target)

    def test_another_machine_needs_tls_or_a_word(self):
        """One target of several is enough; the error says what to do, and not the token."""
        for target in ("server:1", "localhost:1,server:1"):
            with pytest.raises(InvalidArgument, match="would go to server:1 in plain text") as caught:
                Client(target, token="secret")  # noqa: S106
            assert "--tls" in str(caught.value)
            assert "secret" not in str(caught.value)
            Client(target, token="secret", tls=Tls())  # noqa: S106
            Client(target, token=Token("secret", in_plain_text=True))

    def test_a_token_beside_another_one_is_refused(self):
        """It is not clear which one is meant."""
        with pytest.raises(InvalidArgument, match="authorization too"):
            Client("localhost:1", token="t", metadata={"authorization": "Bearer u"})  # noqa: S106

    @pytest.mark.parametrize("text", ["", "a b", "a\n", "ä", "\x00"])
    def test_what_is_no_token_is_refused(self, text):
        """Before anything is sent."""
        with pytest.raises(InvalidArgument, match=r"^token: ") as caught:
            Client("localhost:1", token=text)
        assert caught.value.field == "token"
        with pytest.raises(InvalidArgument):
            Token(lambda: text).metadata()


class TestCalls:
    """What servers see."""

    async def test_every_call_has_the_token_of_its_time(self, server, connect):
        """Calls and streams; a rotated token is used with the next one."""
        tokens = iter(f"t{number}" for number in range(100))
        async with connect(token=lambda: next(tokens)) as client:
            await client.models()
            async with client.session() as session:
                await session.step([1.0])
                assert len([each async for each in session.stream([[2.0]])]) == 1
                await session.forecast(2)
        sent = [metadata["authorization"] for _, metadata in server.metadata]
        assert sent == [f"Bearer t{number}" for number in range(len(sent))]
        assert len(sent) == 6

    async def test_a_source_that_fails_fails_the_call(self, connect):
        """The caller sees what the source raised."""

        def fail():
            raise LookupError("no token today")

        async with connect(token=fail) as client:
            with pytest.raises(LookupError, match="no token today"):
                await client.models()


class TestTokenFile:
    """A token in a file."""

    def test_it_is_read_again_when_it_changes(self, tmp_path):
        """A file that is away or empty meanwhile changes nothing."""
        path = tmp_path / "token"
        path.write_text("one\n")
        file = TokenFile(path)
        assert [file(), file()] == ["one", "one"]
        path.write_text("two-two\n")
        assert file() == "two-two"
        path.write_text("")
        assert file() == "two-two"
        path.unlink()
        assert file() == "two-two"
        (tmp_path / "new").write_text("three")
        os.replace(tmp_path / "new", path)
        assert file() == "three"

    def test_a_file_that_never_held_one_is_an_error(self, tmp_path):
        """Missing, or empty."""
        with pytest.raises(FileNotFoundError):
            TokenFile(tmp_path / "token")
        (tmp_path / "token").write_text("\n")
        with pytest.raises(InvalidArgument):
            TokenFile(tmp_path / "token")
