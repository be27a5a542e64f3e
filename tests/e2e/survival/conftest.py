"""What the tests of sessions that survive share: addresses, stores, the truth."""

import pytest
import torch

from service.runtime import artifact
from tests.e2e.conftest import ROOT
from tests.e2e.survival.fleet import MODEL, Seat


@pytest.fixture
def new_seat(front):
    """Gives servers addresses of their own; they end with the test."""
    seats = []

    def new(*flags):
        seats.append(Seat("--front", front, *flags))
        return seats[-1]

    yield new
    for seat in seats:
        seat.close()


@pytest.fixture
def store():
    """The kind of store, unless a test says otherwise."""
    return "sqlite"


@pytest.fixture
def store_url(store, tmp_path, request):
    """An empty store, which servers may share."""
    if store == "redis":
        return request.getfixturevalue("empty_redis").url()
    return f"sqlite:{tmp_path}/sessions.db"


@pytest.fixture(scope="session")
def truth():
    """The artifact itself, to compute what the servers must answer."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other, beside a busy server 30 times as long
    yield artifact.load(
        MODEL, "1", ROOT / "model" / "artifacts" / MODEL / "1" / "model.pt", torch.device("cpu")
    )
    torch.set_num_threads(num_threads)
