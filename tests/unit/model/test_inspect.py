"""The inspect command."""

import json

import pytest


@pytest.fixture
def reference(command, tmp_path):
    """Writes a small reference artifact, and returns its path."""
    path = tmp_path / "model.pt"
    status, _, _ = command(
        "export", "--reference", "--inputs", 3, "--hidden", 16, "--layers", 1, "--out", path
    )
    assert status == 0
    return path


def test_it_shows_what_the_manifest_says(command, reference):
    """The text names the inputs and the parts of the state."""
    status, out, _ = command("inspect", "--artifact", reference)
    assert status == 0
    for said in ("input_0", "input_2", "layers.0.h (16)", "layers.0.c (16)", "32 floats"):
        assert said in out


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_artifact_is_refused(refused, tmp_path, content):
    """The message is one line that names the file."""
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert str(path) in refused("inspect", "--artifact", path)


def test_another_format_version_is_refused(refused, reference, tmp_path):
    """The message names the manifest's format_version."""
    import torch

    script = torch.jit.load(reference)
    other = tmp_path / "other.pt"
    torch.jit.save(script, other, _extra_files={"manifest.json": b'{"format_version": 7}'})
    assert "7" in refused("inspect", "--artifact", other)


def test_text_and_json_show_the_manifest(artifact_path, command):
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
