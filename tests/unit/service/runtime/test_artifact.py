"""Artifacts: a good file loads; any other is refused in one line with its path."""

import contextlib
import pathlib
import random
import zipfile

import pytest
import torch
from torch import Tensor, nn

from service.errors import ConfigError
from service.runtime import artifact
from tests.fakes import CPU, Recurrence, manifest_of, save

LAYOUT = manifest_of()["state"]["layout"]


class NoForecast(nn.Module):
    """A script without one of the three methods."""

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns its input."""
        return x, state

    @torch.jit.export
    def scan(self, x: Tensor, time: Tensor, lengths: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns its input."""
        return x, state


class Forward(nn.Module):
    """A TorchScript module that is no artifact."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns its input."""
        return x


class Raises(Recurrence):
    """A script that refuses its input."""

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Raises on any but seven inputs."""
        assert x.size(1) == 7, "seven inputs"
        return x, state


class ReturnsThree(nn.Module):
    """A script whose step returns three tensors."""

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns one tensor too many."""
        return x, state, state

    @torch.jit.export
    def scan(self, x: Tensor, time: Tensor, lengths: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns its input."""
        return x, state

    @torch.jit.export
    def forecast(self, state: Tensor, time: Tensor, horizon: int, future: Tensor) -> Tensor:
        """Returns zeros."""
        return torch.zeros(state.size(0), horizon, 2)


class Doubles(ReturnsThree):
    """A script that computes in float64, so that no step's state could be written to the pool."""

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns float64."""
        return x.double(), state.double()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A good artifact's file."""
    return save(tmp_path_factory.mktemp("models") / "recurrence" / "1" / "model.pt")


def refusal(path):
    """Returns the one-line reason, after the path, why a file cannot be served."""
    with pytest.raises(ConfigError) as caught:
        artifact.load("m", "1", path, CPU)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


class TestFiles:
    """Files that load, and files that are no TorchScript."""

    def test_a_good_file_loads(self, good):
        """The names are the given ones, the manifest is the one inside, and the methods run."""
        model = artifact.load("other-name", "7", good, CPU)
        assert (str(model), model.name, model.version) == ("other-name/7", "other-name", "7")
        assert model.manifest.name == "recurrence"
        y, state = model.step(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), torch.zeros(4, 3))
        assert (y.shape, state.shape) == ((4, 2), (4, 3))
        assert model.device == CPU

    def test_no_file(self, tmp_path):
        """A path without a file is refused."""
        assert "not a readable TorchScript file" in refusal(tmp_path / "model.pt")

    @pytest.mark.parametrize(
        "content", [b"", b"PK\x03\x04 no archive", bytes(range(256)) * 40], ids=["empty", "zip", "noise"]
    )
    def test_no_torchscript(self, tmp_path, content):
        """A file that is not TorchScript is refused."""
        path = tmp_path / "model.pt"
        path.write_bytes(content)
        assert "not a readable TorchScript file" in refusal(path)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
    def test_a_file_cut_short(self, good, tmp_path, share):
        """A truncated file is refused."""
        whole = good.read_bytes()
        path = tmp_path / "model.pt"
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "not a readable TorchScript file" in refusal(path)

    def test_an_archive_of_something_else(self, tmp_path):
        """A zip file that is not TorchScript, such as saved weights, is refused."""
        path = tmp_path / "model.pt"
        torch.save({"weight": torch.zeros(2)}, path)
        assert "not a readable TorchScript file" in refusal(path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
        assert "not a readable TorchScript file" in refusal(path)

    @pytest.mark.parametrize("seed", range(8))
    def test_overwritten_bytes(self, good, tmp_path, seed):
        """A file with some bytes overwritten is refused with a ConfigError, or loads."""
        damaged = bytearray(good.read_bytes())
        draw = random.Random(seed)
        at = draw.randrange(damaged.index(b'"training": {}}') + 20, len(damaged) - 64)
        damaged[at : at + 64] = draw.randbytes(64)
        path = tmp_path / "model.pt"
        path.write_bytes(damaged)
        with contextlib.suppress(ConfigError):
            artifact.load("m", "1", path, CPU)


class TestManifests:
    """The manifest inside the file."""

    def test_no_manifest(self, tmp_path):
        """TorchScript without a manifest inside is refused."""
        path = tmp_path / "model.pt"
        torch.jit.save(torch.jit.script(Recurrence()), str(path))
        assert "no manifest.json inside" in refusal(path)

    def test_another_format_version(self, tmp_path):
        """A manifest of another format version is refused."""
        assert "format_version is 2; this server reads 1" in refusal(
            save(tmp_path / "model.pt", format_version=2)
        )

    def test_a_damaged_manifest(self, tmp_path):
        """The message is the manifest's own error."""
        path = save(tmp_path / "model.pt", state={"size": 9, "layout": LAYOUT})
        assert "cover 3 values of 9" in refusal(path)

    def test_a_manifest_that_is_not_utf8(self, tmp_path):
        """A manifest that is not UTF-8 is refused in one line with the path."""
        path = tmp_path / "model.pt"
        torch.jit.save(
            torch.jit.script(Recurrence()), str(path), _extra_files={"manifest.json": b"\xff\xfe{"}
        )
        with pytest.raises(ConfigError, match=r"model\.pt: "):
            artifact.load("m", "1", path, CPU)


class TestScripts:
    """Scripts that do not do what their manifest says."""

    @pytest.mark.parametrize(
        ("module", "names"),
        [(NoForecast(), "forecast"), (Forward(), "step, scan, forecast")],
        ids=["one", "all"],
    )
    def test_a_missing_method(self, tmp_path, module, names):
        """The message names every missing method."""
        assert f"the script has no method {names}" in refusal(save(tmp_path / "model.pt", module))

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"inputs": [{"name": "a"}]}, "fails on an input of its manifest's shape"),
            (
                {"inputs": [{"name": "a"}, {"name": "b"}, {"name": "c"}], "outputs": [{"name": "y"}]},
                "gives shapes",
            ),
            ({"outputs": [{"name": "y"}]}, "gives shapes"),
            ({"state": {"size": 2, "layout": LAYOUT[:2]}}, "fails on an input of its manifest's shape"),
            ({"state": {"size": 4, "layout": [*LAYOUT, {"name": "z", "offset": 3, "size": 1}]}}, "fails on"),
        ],
        ids=["inputs", "too many inputs", "outputs", "small state", "large state"],
    )
    def test_shapes_that_contradict_the_manifest(self, tmp_path, changes, says):
        """A script and a manifest that contradict each other are refused at start-up."""
        assert says in refusal(save(tmp_path / "model.pt", **changes))

    @pytest.mark.parametrize(
        "module", [Raises(), ReturnsThree(), Doubles()], ids=lambda one: type(one).__name__
    )
    def test_a_script_that_breaks_the_contract(self, tmp_path: pathlib.Path, module):
        """A script that raises, or returns other things than its manifest says, is refused in one line."""
        path = save(tmp_path / "model.pt", module)
        with pytest.raises(ConfigError, match=r"model\.pt: ") as caught:
            artifact.load("m", "1", path, CPU)
        assert "\n" not in str(caught.value)


class TestDiscover:
    """The models below a folder."""

    def test_discover_finds_names_and_versions(self, tmp_path):
        """Every NAME/VERSION/model.pt is found, in order; other files are ignored."""
        for place in ("b/2", "a/10", "a/9"):
            (tmp_path / place).mkdir(parents=True)
            (tmp_path / place / "model.pt").touch()
        (tmp_path / "a" / "model.pt").touch()
        (tmp_path / "a" / "9" / "notes.txt").touch()
        found = [
            (name, version, path.relative_to(tmp_path)) for name, version, path in artifact.discover(tmp_path)
        ]
        assert found == [
            ("a", "10", pathlib.Path("a/10/model.pt")),
            ("a", "9", pathlib.Path("a/9/model.pt")),
            ("b", "2", pathlib.Path("b/2/model.pt")),
        ]

    def test_discover_names_the_flag(self, tmp_path):
        """The errors for a missing folder, and for one without models, name flag and path."""
        with pytest.raises(ConfigError, match=r"^--models: .*nowhere is not a folder"):
            list(artifact.discover(tmp_path / "nowhere"))
        with pytest.raises(ConfigError, match=r"^--models: .* holds no NAME/VERSION/model.pt"):
            list(artifact.discover(tmp_path))
