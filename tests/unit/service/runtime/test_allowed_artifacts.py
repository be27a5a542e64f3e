"""The list of allowed artifacts: its form, and that torch never sees bytes that are not on it."""

import hashlib
import pathlib
import subprocess

import pytest
import torch

from service.errors import ConfigError
from service.runtime import allowed_artifacts, artifact
from service.runtime.allowed_artifacts import AllowedArtifacts, NotAllowedError
from tests.fakes import CPU, Sharper, save

ONE, OTHER = (hashlib.sha256(raw).hexdigest() for raw in (b"one", b"other"))


@pytest.fixture
def listing(tmp_path):
    """Returns a function that makes the list with the lines given."""

    def make(*lines):
        path = tmp_path / "allowed.sha256"
        path.write_text("".join(f"{line}\n" for line in lines))
        return AllowedArtifacts(str(path))

    return make


@pytest.fixture
def loaded(monkeypatch):
    """Returns the list of what torch was asked to load."""
    found = []
    real = torch.jit.load
    monkeypatch.setattr(torch.jit, "load", lambda *given, **more: found.append(given) or real(*given, **more))
    return found


class TestList:
    """The form of the list."""

    def test_what_sha256sum_writes(self, tmp_path):
        """Of names with spaces, backslashes and line ends, in text and binary mode."""
        for name, raw in (("one", b"one"), ("of two words", b"other"), ("odd\\name\n", b"odd")):
            (tmp_path / name).write_bytes(raw)
        hashes = {hashlib.sha256(raw).hexdigest() for raw in (b"one", b"other", b"odd")}
        names = sorted(path.name for path in tmp_path.iterdir())
        for mode in ("--text", "--binary"):
            done = subprocess.run(["sha256sum", mode, *names], cwd=tmp_path, capture_output=True, check=True)
            assert allowed_artifacts.parse(done.stdout.decode()) == hashes

    def test_comments_bare_hashes_and_capitals(self):
        """Only the hash counts."""
        text = f"# ours\r\n\r\n{ONE.upper()}\r\n{OTHER}\tanything at all\n"
        assert allowed_artifacts.parse(text) == {ONE, OTHER}
        assert allowed_artifacts.parse("") == frozenset()

    @pytest.mark.parametrize(
        "line", [ONE[:-1], ONE + "0", "model.pt", f"model.pt  {ONE}", "x" * 64, f"{ONE},a"]
    )
    def test_a_line_without_a_hash_is_named(self, line):
        """A list with a slip in it is no list: the slip may have been meant for a hash."""
        with pytest.raises(ValueError, match=r"^line 2 does not begin with a SHA-256"):
            allowed_artifacts.parse(f"{ONE}  a\n{line}\n")

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (None, "No such file"),
            (b"junk\n", "line 1 does not begin with a SHA-256"),
            (b"#" * (1 << 24) + b"#", "has more than 16777216 bytes"),
        ],
    )
    def test_a_server_does_not_start_with_a_list_that_is_wrong(self, tmp_path, content, says):
        """The message names flag and file."""
        path = tmp_path / "allowed.sha256"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=says) as caught:
            AllowedArtifacts(str(path))
        assert str(caught.value).startswith(f"--allowed-artifacts: {path}: ")

    def test_a_name_of_any_bytes(self, tmp_path):
        """A list made on another system, with its byte order mark."""
        path = tmp_path / "allowed.sha256"
        path.write_bytes(b"\xef\xbb\xbf" + ONE.encode() + b"  caf\xe9\n")
        AllowedArtifacts(str(path)).check(b"one")


class TestChecks:
    """Bytes are on the list, or refused with their hash."""

    def test_on_the_list_and_not(self, listing):
        """The message has what the list lacks, and where."""
        allowed = listing(f"{ONE}  model.pt")
        allowed.check(b"one")
        with pytest.raises(NotAllowedError) as caught:
            allowed.check(b"other")
        assert OTHER in str(caught.value)
        assert "allowed.sha256" in str(caught.value)

    def test_without_a_list_everything_is_allowed(self):
        """As in releases before."""
        AllowedArtifacts().check(b"anything")
        assert not AllowedArtifacts().look()

    def test_an_empty_list_allows_nothing(self, listing):
        """It is a list all the same."""
        with pytest.raises(NotAllowedError):
            listing().check(b"one")

    def test_a_look_reads_the_file_again(self, listing, tmp_path):
        """A list that cannot be used stays as it was."""
        allowed = listing(ONE)
        assert not allowed.look()
        (tmp_path / "allowed.sha256").write_text(f"{OTHER}\n")
        assert allowed.look()
        allowed.check(b"other")
        with pytest.raises(NotAllowedError):
            allowed.check(b"one")
        (tmp_path / "allowed.sha256").write_text("junk\n")
        with pytest.raises(ConfigError):
            allowed.look()
        allowed.check(b"other")


class TestLoading:
    """An artifact is looked up before torch opens it."""

    def test_torch_never_sees_what_is_not_allowed(self, listing, tmp_path, loaded):
        """The refusal has the file and its hash, in one line."""
        path = save(tmp_path / "model.pt")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        with pytest.raises(ConfigError) as caught:
            artifact.load("m", "1", path, CPU, allowed=listing(ONE))
        assert str(caught.value).startswith(f"{path}: its SHA-256 {found} is not in --allowed-artifacts ")
        assert "\n" not in str(caught.value)
        assert loaded == []
        assert artifact.load("m", "1", path, CPU, allowed=listing(ONE, found)).manifest.name == "recurrence"
        assert len(loaded) == 1

    def test_the_bytes_looked_up_are_the_bytes_loaded(self, listing, tmp_path):
        """A file that is swapped in between is not what runs."""
        path = save(tmp_path / "model.pt")
        raw, other = path.read_bytes(), save(tmp_path / "other.pt", Sharper()).read_bytes()
        allowed = listing(hashlib.sha256(raw).hexdigest())

        class Swapped(type(pathlib.Path())):
            """A file that is another one from the second look on."""

            def read_bytes(self):
                found = super().read_bytes()
                path.write_bytes(other)
                return found

        model = artifact.load("m", "1", Swapped(path), CPU, allowed=allowed)
        assert path.read_bytes() == other
        assert model.digest == hashlib.blake2b(raw, digest_size=artifact.DIGEST_BYTES).digest()
        x, time, state = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), torch.zeros(4, 3)
        path.write_bytes(raw)
        assert torch.equal(
            model.step(x, time, state)[0], artifact.load("m", "1", path, CPU).step(x, time, state)[0]
        )
