"""The generated code is what the protos say: generated again, it is the same to the byte."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
CLIENT = ROOT / "client"
FOLDERS = sorted({path.parent.relative_to(ROOT / "protos") for path in PROTOS})


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A folder with newly generated code, made by the command of `make protos`."""
    folder = tmp_path_factory.mktemp("stubs")
    binaries = pathlib.Path(sys.executable).parent
    plugins = [f"--plugin={name}={binaries / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    outputs = [
        f"--python_out={folder}", f"--mypy_out=quiet:{folder}", f"--grpc_python_out={folder}",
        f"--mypy_grpc_out=quiet:{folder}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "protos", *plugins, *outputs]
    names = [str(path.relative_to(ROOT / "protos")) for path in PROTOS]
    subprocess.run([*command, *names], cwd=ROOT, check=True, capture_output=True, timeout=60)
    return folder


def test_the_command_is_that_of_make_protos():
    """The flags used here are in the Makefile's rule, and the rule has no others."""
    recipe = (ROOT / "Makefile").read_text().split("\nprotos:")[1].split("\n\n")[0]
    flags = {word.split("=")[0] for word in recipe.split() if word.startswith("-")}
    assert flags == {
        "-m", "-I", "--plugin", "--python_out", "--mypy_out", "--grpc_python_out", "--mypy_grpc_out",
    }  # fmt: skip


def test_every_proto_has_its_four_files(fresh):
    """Nothing generated is missing, and nothing lies there that no proto makes, `__init__` aside."""
    made = {path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file()}
    there = {
        path.relative_to(CLIENT)
        for folder in FOLDERS
        for path in (CLIENT / folder).iterdir()
        if path.is_file() and path.name != "__init__.py"
    }
    assert len(made) == 4 * len(PROTOS)
    assert there == made


@pytest.mark.parametrize("suffix", ["_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"])
def test_generated_code_is_fresh(fresh, suffix):
    """`make protos` would change nothing."""
    for proto in PROTOS:
        name = proto.relative_to(ROOT / "protos").with_name(proto.stem + suffix)
        assert (CLIENT / name).read_bytes() == (fresh / name).read_bytes(), (
            f"{name} is stale: run make protos"
        )
