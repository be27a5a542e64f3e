"""Artifacts: a good file loads, and whatever is wrong with another is told in one line with its path."""

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
    """Lacks one of the three methods."""

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Echoes."""
        return x, state

    @torch.jit.export
    def scan(self, x: Tensor, time: Tensor, lengths: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Echoes."""
        return x, state


class Forward(nn.Module):
    """A TorchScript module of another kind."""

    def forward(self, x: Tensor) -> Tensor:
        """Echoes."""
        return x


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A good artifact's file."""
    return save(tmp_path_factory.mktemp("models") / "recurrence" / "1" / "model.pt")


def refusal(path):
    """Returns the one line that tells why a file cannot be served."""
    with pytest.raises(ConfigError) as caught:
        artifact.load("m", "1", path, CPU)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_good_file_loads(good):
    """Names are those it is served under, the manifest is the one inside, and its methods run."""
    model = artifact.load("other-name", "7", good, CPU)
    assert (str(model), model.name, model.version) == ("other-name/7", "other-name", "7")
    assert model.manifest.name == "recurrence"
    y, state = model.step(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), torch.zeros(4, 3))
    assert (y.shape, state.shape) == ((4, 2), (4, 3))
    assert model.device == CPU


def test_no_file(tmp_path):
    """A path with nothing there."""
    assert "not a readable TorchScript file" in refusal(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no archive", bytes(range(256)) * 40], ids=["empty", "zip", "noise"]
)
def test_no_torchscript(tmp_path, content):
    """A file of something else."""
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert "not a readable TorchScript file" in refusal(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_file_cut_short(good, tmp_path, share):
    """A copy that stopped midway."""
    whole = good.read_bytes()
    path = tmp_path / "model.pt"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "not a readable TorchScript file" in refusal(path)


def test_an_archive_of_something_else(tmp_path):
    """A zip file that is no TorchScript, such as saved weights."""
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    assert "not a readable TorchScript file" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not a readable TorchScript file" in refusal(path)


def test_no_manifest(tmp_path):
    """TorchScript without a manifest inside."""
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(Recurrence()), str(path))
    assert "no manifest.json inside" in refusal(path)


def test_another_format_version(tmp_path):
    """A manifest of a later format."""
    assert "format_version is 2; this server reads 1" in refusal(
        save(tmp_path / "model.pt", format_version=2)
    )


def test_a_damaged_manifest(tmp_path):
    """The manifest's own error, with the path before it."""
    path = save(tmp_path / "model.pt", state={"size": 9, "layout": LAYOUT})
    assert "cover 3 values of 9" in refusal(path)


@pytest.mark.parametrize(
    ("module", "names"), [(NoForecast(), "forecast"), (Forward(), "step, scan, forecast")], ids=["one", "all"]
)
def test_a_missing_method(tmp_path, module, names):
    """Every method that is not there is named."""
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
def test_shapes_that_contradict_the_manifest(tmp_path, changes, says):
    """A script and a manifest that do not belong together are found out at start-up."""
    assert says in refusal(save(tmp_path / "model.pt", **changes))


def test_discover_finds_names_and_versions(tmp_path):
    """Every NAME/VERSION/model.pt is found, in order; other files are nothing to it."""
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


def test_discover_names_the_flag(tmp_path):
    """A folder that is not there, and one without models, are told by flag and path."""
    with pytest.raises(ConfigError, match=r"^--models: .*nowhere is not a folder"):
        list(artifact.discover(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"^--models: .* holds no NAME/VERSION/model.pt"):
        list(artifact.discover(tmp_path))


@pytest.mark.parametrize("seed", range(8))
def test_a_byte_gone_wrong(good, tmp_path, seed):
    """A file with some bytes overwritten is refused, or else loads: nothing but ConfigError comes of it."""
    damaged = bytearray(good.read_bytes())
    draw = random.Random(seed)
    at = draw.randrange(damaged.index(b'"training": {}}') + 20, len(damaged) - 64)
    damaged[at : at + 64] = draw.randbytes(64)
    path = tmp_path / "model.pt"
    path.write_bytes(damaged)
    with contextlib.suppress(ConfigError):
        artifact.load("m", "1", path, CPU)
