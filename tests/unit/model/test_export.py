"""The export command and the artifact's file."""

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch

from model.artifact import load_artifact, save_artifact
from model.errors import ArtifactError
from model.export import reference
from model.files import write_atomically


@pytest.fixture
def artifact_path(tmp_path) -> Path:
    """A small reference artifact's file."""
    network, manifest = reference(num_inputs=3, hidden_size=16, num_layers=2, seed=5)
    save_artifact(network, manifest, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_reference_is_seeded_and_bare(command, tmp_path):
    """The same seed gives the same weights; the state is h and c alone; there is no scaling and no time."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        arguments = ("--inputs", 8, "--hidden", 128, "--layers", 1, "--seed", seed)
        status, out, _ = command("export", "--reference", *arguments, "--out", tmp_path / name)
        assert status == 0
        assert "reference 1" in out
    first, second, other = (load_artifact(tmp_path / name) for name in "abc")
    assert first.manifest == second.manifest
    assert first.manifest.state_size == 256
    assert not first.manifest.uses_time
    x = torch.randn(4, 8)
    y, state = first.script.step(x, torch.zeros(4, dtype=torch.int64), first.zero_state(4))
    assert y.shape == (4, 1)
    assert torch.equal(y, second.script.step(x, torch.zeros(4, dtype=torch.int64), first.zero_state(4))[0])
    assert not torch.equal(y, other.script.step(x, torch.zeros(4, dtype=torch.int64), first.zero_state(4))[0])
    forecast = first.script.forecast(state, torch.zeros(4, dtype=torch.int64), 5, torch.zeros(4, 5, 0))
    assert forecast.shape == (4, 5, 1)


def test_loads_without_project_code(artifact_path):
    """Plain torch loads and steps the artifact, and finds the manifest inside."""
    extra = {"manifest.json": ""}
    script = torch.jit.load(io.BytesIO(artifact_path.read_bytes()), _extra_files=extra)
    size = json.loads(extra["manifest.json"])["state"]["size"]
    y, state = script.step(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64), torch.zeros(1, size))
    assert (tuple(y.shape), tuple(state.shape)) == ((1, 1), (1, size))


def test_files_are_written_whole(tmp_path):
    """A file is replaced in one move and leaves no partial one behind."""
    for content in (b"first", b"second"):
        write_atomically(tmp_path / "deep" / "file", content)
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]
        assert (tmp_path / "deep" / "file").read_bytes() == content


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "zip"])
def test_damaged_artifacts_are_refused(artifact_path, refused, damage):
    """A file that is no whole artifact is refused by name, in one line."""
    whole = artifact_path.read_bytes()
    artifact_path.write_bytes(
        {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}.get(damage, b"")
    )
    if damage == "zip":
        with zipfile.ZipFile(artifact_path, "w") as archive:
            archive.writestr("hello.txt", "hello")
    assert str(artifact_path) in refused("inspect", "--artifact", artifact_path)


def test_other_formats_are_refused(artifact_path):
    """A script without manifest, with another format_version or without the methods is refused."""

    class Nothing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    script = torch.jit.script(Nothing())
    manifest = json.loads(load_artifact(artifact_path).manifest.to_json())
    for extra, said in (
        ({}, "no manifest.json"),
        ({"manifest.json": json.dumps({**manifest, "format_version": 9})}, "format_version 9 is not 1"),
        ({"manifest.json": json.dumps(manifest)}, "no method step"),
    ):
        torch.jit.save(script, str(artifact_path), _extra_files=extra)
        with pytest.raises(ArtifactError, match=said):
            load_artifact(artifact_path)


def test_impossible_references_are_refused(refused, tmp_path):
    """A hidden size that is no multiple of 16 and a network without inputs are refused."""
    out = tmp_path / "model.pt"
    assert "multiple of 16" in refused("export", "--reference", "--hidden", 100, "--out", out)
    assert "inputs" in refused("export", "--reference", "--inputs", 0, "--out", out)
    assert not out.exists()


def test_exports_a_checkpoint(command, refused, tiny_csv, tiny, tmp_path):
    """A finished training's checkpoint gives the artifact that the training wrote, and damage is refused."""
    status, _, _ = command("train", "--csv", tiny_csv, "--out", tmp_path / "out", *tiny)
    assert status == 0
    folder = tmp_path / "out" / "tiny" / "1"
    status, _, _ = command("export", "--checkpoint", folder / "checkpoint.pt", "--out", tmp_path / "again.pt")
    assert status == 0
    trained, exported = load_artifact(folder / "model.pt"), load_artifact(tmp_path / "again.pt")
    theirs = exported.script.state_dict()
    for name, weight in trained.script.state_dict().items():
        assert torch.equal(weight, theirs[name])
    assert exported.manifest.training["command"] == trained.manifest.training["command"]
    (folder / "checkpoint.pt").write_bytes(b"no checkpoint")
    assert "not a checkpoint" in refused(
        "export", "--checkpoint", folder / "checkpoint.pt", "--out", tmp_path / "x"
    )
    assert "no such checkpoint" in refused(
        "export", "--checkpoint", tmp_path / "none", "--out", tmp_path / "x"
    )


def test_scripts_an_artifact_anew(command, refused, tiny_csv, tiny, tmp_path):
    """An artifact's weights and manifest go into this version's script; without an architecture, refused."""
    assert command("train", "--csv", tiny_csv, "--out", tmp_path / "out", *tiny)[0] == 0
    trained = tmp_path / "out" / "tiny" / "1" / "model.pt"
    assert command("export", "--artifact", trained, "--out", tmp_path / "again.pt")[0] == 0
    old, new = load_artifact(trained), load_artifact(tmp_path / "again.pt")
    assert new.manifest == old.manifest
    theirs = new.script.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in old.script.state_dict().items())
    bare = tmp_path / "bare.pt"
    assert command("export", "--reference", "--hidden", 16, "--out", bare)[0] == 0
    assert "architecture" in refused("export", "--artifact", bare, "--out", tmp_path / "x")


def test_inspect_tells_the_manifest(artifact_path, command):
    """`inspect` names inputs, outputs and the state's layout; --json prints the manifest as stored."""
    status, out, _ = command("inspect", "--artifact", artifact_path)
    assert status == 0
    for part in (
        "reference, version 1",
        "input_2",
        "mean of input_0",
        "layers.1.c (16)",
        "does not use time",
    ):
        assert part in out
    _, out, _ = command("inspect", "--artifact", artifact_path, "--json")
    assert json.loads(out)["state"]["size"] == 64
