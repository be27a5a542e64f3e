"""Fixtures for calls without a transport."""

import pytest

from tests.unit.service.rpc.rigs import RouterRig


@pytest.fixture
def rig():
    """A router, and a record of what it counted."""
    return RouterRig()
