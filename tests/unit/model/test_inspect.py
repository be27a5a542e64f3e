"""The inspect command."""

import pytest


@pytest.fixture
def reference(command, tmp_path):
    """A small reference artifact."""
    path = tmp_path / "model.pt"
    status, _, _ = command(
        "export", "--reference", "--inputs", 3, "--hidden", 16, "--layers", 1, "--out", path
    )
    assert status == 0
    return path


def test_it_shows_what_the_manifest_says(command, reference):
    """Inputs, outputs and the state's layout are there to read."""
    status, out, _ = command("inspect", "--artifact", reference)
    assert status == 0
    for said in ("input_0", "input_2", "layers.0.h (16)", "layers.0.c (16)", "32 floats"):
        assert said in out


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_artifact_is_one_line(refused, tmp_path, content):
    """The line names the file."""
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert str(path) in refused("inspect", "--artifact", path)


def test_another_format_version_is_refused(refused, reference, tmp_path):
    """A manifest of another version is named with its number."""
    import torch

    script = torch.jit.load(reference)
    other = tmp_path / "other.pt"
    torch.jit.save(script, other, _extra_files={"manifest.json": b'{"format_version": 7}'})
    assert "7" in refused("inspect", "--artifact", other)
