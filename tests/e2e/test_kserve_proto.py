"""A client that knows only KServe's published proto can use the server."""

import json
import os
import subprocess
import sys

import numpy as np
import torch

from service.runtime import artifact
from tests.e2e.conftest import BOUND_SECONDS, ROOT
from tests.integration.conftest import ARTIFACTS, folded, inputs

FOLDER = ROOT / "tests" / "e2e"


def test_a_stranger_streams_a_sequence(start_server, tmp_path):
    """The client lists the models, reads their metadata, and gets the artifact's bits."""
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", FOLDER]
    outputs = [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    subprocess.run([*command, *outputs, FOLDER / "kserve.proto"], check=True, timeout=BOUND_SECONDS)
    server = start_server()
    x = inputs(seed=21, num_steps=30)
    target, values = server.event("serving")["listen"], json.dumps(x[:, 0].astype(float).tolist())
    done = subprocess.run(
        [sys.executable, "-W", "error", FOLDER / "kserve_client.py", target, values],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["models"] == ["mackey-glass", "nyc-taxi"]
    assert found["model"] == "mackey-glass"
    path = ARTIFACTS / "mackey-glass" / "1" / "model.pt"
    model = artifact.load("mackey-glass", "1", path, torch.device("cpu"))
    assert json.loads(found["outputs"]) == [part.name for part in model.manifest.outputs]
    assert np.array_equal(np.array(found["y"], np.float32), folded(model, x))
