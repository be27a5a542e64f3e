"""What `make proto-check` is worth: it finds what would break clients, and says so where it cannot look."""

import pathlib
import shutil
import subprocess

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOT = pathlib.Path(__file__).parents[2]
PROTO = pathlib.Path("streamcell", "v1", "streamcell.proto")
BUF = ROOT / ".cache" / "buf" / "node_modules" / ".bin" / "buf"


def test_the_baseline_holds_the_released_api():
    """It is a set of descriptors, of files that there are."""
    files = FileDescriptorSet.FromString((ROOT / "protos" / "baseline.binpb").read_bytes()).file
    assert str(PROTO) in {file.name for file in files}
    assert all(
        (ROOT / "protos" / file.name).exists() for file in files if file.name.startswith("streamcell/")
    )


def test_without_npm_the_check_says_that_it_is_skipped(tmp_path):
    """And does not fail: CI of a machine without node goes on."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "protos").mkdir()
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("make", "sh", "find", "awk"):
        (programs / name).symlink_to(shutil.which(name))
    found = subprocess.run(
        ["make", "proto-check"], cwd=tmp_path, env={"PATH": str(programs)}, capture_output=True, text=True
    )
    assert (found.returncode, "skipped" in found.stdout) == (0, True), found.stderr


@pytest.mark.skipif(
    not (BUF.exists() and shutil.which("node")), reason="buf is not installed: run make proto-check with npm"
)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("uint64 step_index = 1;", "uint64 step_index = 77;"),
        ("uint64 step_index = 1;", "uint32 step_index = 1;"),
        ("rpc Step(StepRequest)", "rpc Step(PrimeRequest)"),
    ],
)
def test_a_change_that_breaks_clients_is_found(tmp_path, before, after):
    """A number, a type, a method's request: what generated code or bytes of a release would trip over."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    text = (tmp_path / "protos" / PROTO).read_text()
    assert before in text
    (tmp_path / "protos" / PROTO).write_text(text.replace(before, after))
    baseline = str(ROOT / "protos" / "baseline.binpb")
    command = [str(BUF), "breaking", "protos", "--against", baseline]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert found.returncode == 100
    assert "streamcell.proto" in found.stdout
