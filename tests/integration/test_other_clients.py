"""Clients that others wrote, against both fronts: `buf curl`, and a load generator in C++.

`make proto-check` installs buf. The generator's source lies beside the checkout and needs gRPC's C++ library.
Tests without their client are skipped, and shown as such.
"""

import asyncio
import json
import shutil
import subprocess

import pytest

from bench import payloads
from model.artifact import save_artifact
from model.export import reference
from tests.integration.conftest import BOUND_SECONDS, ROOT

BUF = ROOT / ".cache" / "buf" / "node_modules" / ".bin" / "buf"
SOURCE = ROOT.parent / "shared" / "loadgen" / "loadgen.cc"
SERVICE = "streamcell.v1.StreamcellService"
GRPC = ("--protocol", "grpc", "--http2-prior-knowledge")
SCHEMA = ("--schema", "protos")

HAS_BUF = BUF.exists() and shutil.which("node")

needs_buf = pytest.mark.skipif(not HAS_BUF, reason="buf is not installed: run make proto-check with npm")


async def run(*command):
    """Runs a program and returns its status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), BOUND_SECONDS)
    return process.returncode, output.decode(), errors.decode()


async def curl(peer, ways, method, **message):
    """Calls a method by `buf curl`."""
    url = f"http://{peer.server.listen}/{SERVICE}/{method}"
    return await run(str(BUF), "curl", *ways, "--data", json.dumps(message), url)


async def check(peer, ways):
    """Lists the models, takes two steps, and checks the error of a third."""
    status, output, errors = await curl(peer, ways, "ListModels")
    assert (status, errors) == (0, "")
    assert {model["name"] for model in json.loads(output)["models"]} == {"mackey-glass", "nyc-taxi"}
    session_id = await peer.open()
    for index in range(2):
        status, output, errors = await curl(peer, ways, "Step", session_id=session_id, x=[0.5])
        assert (status, errors) == (0, "")
        assert int(json.loads(output).get("stepIndex", 0)) == index
    status, output, errors = await curl(peer, ways, "Step", session_id=session_id, x=[0.5], step_index=9)
    error = json.loads(errors)
    assert (status, error["code"]) == (
        9 * 8,
        "failed_precondition",
    )  # buf's status is eight times gRPC's code
    assert "google.rpc.ErrorInfo" in {detail["type"] for detail in error["details"]}


@needs_buf
@pytest.mark.parametrize("ways", [GRPC, (*GRPC, *SCHEMA)], ids=["reflection", "schema"])
async def test_buf_curl_speaks_grpc(peer, ways):
    """Buf gets the API from the server's reflection, or from the proto."""
    await check(peer, ways)


@needs_buf
@pytest.mark.parametrize("front", ["envoy"], indirect=True)
@pytest.mark.parametrize("protocol", ["connect", "grpcweb"])
async def test_buf_curl_speaks_the_webs_protocols(peer, protocol):
    """The connection is HTTP/1.1, as a browser's may be."""
    await check(peer, ("--protocol", protocol, *SCHEMA))


@pytest.fixture(scope="session")
def generator(tmp_path_factory):
    """The built generator; skips the test if it cannot be built."""
    if not SOURCE.exists():
        pytest.skip(f"{SOURCE.name} does not lie beside the checkout")
    if not (shutil.which("g++") and shutil.which("pkg-config")):
        pytest.skip("g++ and pkg-config are not installed")
    libraries = subprocess.run(["pkg-config", "--libs", "grpc++", "protobuf"], capture_output=True, text=True)
    if libraries.returncode:
        pytest.skip("gRPC's C++ library is not installed")
    program = tmp_path_factory.mktemp("loadgen") / "loadgen"
    command = ["g++", "-O2", "-std=c++17", str(SOURCE), "-o", str(program), *libraries.stdout.split()]
    subprocess.run(command, check=True, timeout=600)
    return program


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder with the reference artifact, which the payloads are made for."""
    folder = tmp_path_factory.mktemp("models")
    path = folder / "reference" / "1" / "model.pt"
    path.parent.mkdir(parents=True)
    save_artifact(*reference(num_inputs=8, hidden_size=128, num_layers=1, seed=0), path)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("is_stream", [False, True], ids=["unary", "stream"])
async def test_the_generator_in_c_plus_plus_meets_no_error(start, generator, models, tmp_path, is_stream):
    """64 sessions at once for two seconds, over several connections: each step is answered."""
    peer = await start(models=models)
    target = str(peer.server.listen)
    assert not await asyncio.to_thread(payloads.main, ["--target", target, "--out", str(tmp_path)])
    kind = ["--stream", "1", "--requests", "stream.bin", "--first", "first.bin"]
    kind = kind if is_stream else ["--stream", "0", "--requests", "unary.bin"]
    files = [str(tmp_path / each) if each.endswith(".bin") else each for each in kind]
    method = f"/{SERVICE}/{'Stream' if is_stream else 'Step'}"
    options = ["--proto", "raw", "--method", method, "--conc", "64", "--dur", "2", "--warm", "0.5"]
    status, output, errors = await run(str(generator), *options, *files, "--target", target)
    assert status == 0, errors
    found = json.loads(output)
    assert (found["errors"], found["first_error"]) == (0, "")
    assert found["steps"] > 64
