"""NVIDIA's own client, unmodified, in an environment of its own, against the server's process.

The client's messages have the same names as this project's, and a process can have only one set; its protobuf
is older. `make test` sets up the environment (requirements-triton.lock); without it these tests are skipped.
"""

import json
import subprocess

import numpy as np
import pytest
import torch

from service.runtime import artifact
from tests.e2e.conftest import BOUND_SECONDS, ROOT
from tests.integration.conftest import ARTIFACTS, folded, inputs

PYTHON = ROOT / ".cache" / "tritonclient" / "bin" / "python"
NUM_SEQUENCES, NUM_STEPS = 50, 20
WAYS = ("sync unary", "sync stream", "whole", "aio unary", "aio stream")

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="NVIDIA's client is not set up in .cache/tritonclient: run make test"
)


@pytest.fixture
def xs():
    """Returns the inputs of 50 sequences, by id: numbers and texts in turn."""
    names = [
        json.dumps(number if number % 2 else f"sequence {number}") for number in range(1, NUM_SEQUENCES + 1)
    ]
    return {name: inputs(seed, NUM_STEPS) for seed, name in enumerate(names)}


@pytest.fixture(scope="module")
def model():
    """Returns the artifact itself."""
    path = ARTIFACTS / "mackey-glass" / "1" / "model.pt"
    return artifact.load("mackey-glass", "1", path, torch.device("cpu"))


def test_nvidias_client_gets_the_artifacts_bits(start_server, xs, model):
    """Unary, streaming, asyncio; ids of both kinds; 50 sequences at once: the bits of the artifact."""
    server = start_server()
    asked = {
        "target": server.event("serving")["listen"],
        "x": {name: x.astype(float).tolist() for name, x in xs.items()},
    }
    done = subprocess.run(
        [PYTHON, "-W", "error", ROOT / "tests" / "e2e" / "triton_client.py"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = {name: folded(model, x).tobytes().hex() for name, x in xs.items()}
    for way in WAYS:
        assert found[way] == expected, way
    _check_errors(found, folded(model, np.ones((1, 1), np.float32)))
    _check_about(found["about"])
    server.signal()
    assert server.wait() == 0


def _check_errors(found, expected):
    """Checks that an unknown sequence without a start is an error, and that the stream goes on."""
    assert found["unary error"]["status"] == "StatusCode.NOT_FOUND"
    assert "begin it with sequence_start" in found["unary error"]["message"]
    assert found["stream errors"]["error"] == found["unary error"]["message"]
    assert found["stream errors"]["result"] == expected.tobytes().hex()


def _check_about(about):
    """Checks all that the client reads about server and model, counts included."""
    assert (about["live"], about["ready"], about["model_ready"], about["unknown_ready"]) == (True,) * 3 + (
        False,
    )
    assert {"sequence", "sequence(string_id)", "statistics"} <= set(about["server"]["extensions"])
    assert about["model"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "1"]}]
    config = about["config"]["config"]
    assert (config["name"], config["max_batch_size"]) == ("mackey-glass", 1)
    assert "sequence_batching" in config
    assert {"name": "nyc-taxi", "version": "1", "state": "READY"} in about["index"]["models"]
    (statistics,) = about["statistics"]["model_stats"]
    num_steps = len(WAYS) * NUM_SEQUENCES * NUM_STEPS + 1
    assert int(statistics["inference_count"]) == num_steps
    assert int(statistics["inference_stats"]["success"]["count"]) == num_steps
    assert int(statistics["inference_stats"]["fail"]["count"]) == 2
