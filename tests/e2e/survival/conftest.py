"""Servers at fixed addresses, stores, and the model, for tests of sessions that outlive a server."""

import pytest
import torch

from service.runtime import artifact
from tests.e2e.conftest import ROOT
from tests.e2e.survival.fleet import MODEL, Replica


@pytest.fixture
def new_replica(front):
    """Returns servers, each at an address of its own; the servers end with the test."""
    replicas = []

    def new(*flags):
        replicas.append(Replica("--front", front, *flags))
        return replicas[-1]

    yield new
    for replica in replicas:
        replica.close()


@pytest.fixture
def store():
    """Returns the kind of store, unless a test says otherwise."""
    return "sqlite"


@pytest.fixture
def store_url(store, tmp_path, request):
    """Returns the URL of an empty store, which servers may share."""
    if store == "redis":
        return request.getfixturevalue("empty_redis").url()
    return f"sqlite:{tmp_path}/sessions.db"


@pytest.fixture(scope="session")
def model():
    """Returns the artifact itself, to compute what the servers must answer."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads wait for each other: 30 times as long beside a busy server
    yield artifact.load(
        MODEL, "1", ROOT / "model" / "artifacts" / MODEL / "1" / "model.pt", torch.device("cpu")
    )
    torch.set_num_threads(num_threads)
