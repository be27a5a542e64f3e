"""The artifact's file: what is inside, and which files are refused."""

import io
import json
import zipfile

import pytest
import torch

from model.artifact import load_artifact
from model.errors import ArtifactError


def test_loads_without_project_code(artifact_path):
    """Plain torch loads and steps the artifact, and finds the manifest inside."""
    extra = {"manifest.json": ""}
    script = torch.jit.load(io.BytesIO(artifact_path.read_bytes()), _extra_files=extra)
    size = json.loads(extra["manifest.json"])["state"]["size"]
    y, state = script.step(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64), torch.zeros(1, size))
    assert (tuple(y.shape), tuple(state.shape)) == ((1, 1), (1, size))


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "zip"])
def test_damaged_artifacts_are_refused(artifact_path, refused, damage):
    """A damaged file is refused in one line that names the file."""
    whole = artifact_path.read_bytes()
    artifact_path.write_bytes(
        {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}.get(damage, b"")
    )
    if damage == "zip":
        with zipfile.ZipFile(artifact_path, "w") as archive:
            archive.writestr("hello.txt", "hello")
    assert str(artifact_path) in refused("inspect", "--artifact", artifact_path)


def test_other_formats_are_refused(artifact_path):
    """A script without a manifest, with another format_version or without the methods is refused."""

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
