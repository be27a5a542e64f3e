"""What the engine's tests share."""

import pytest

from tests.fakes import Rig


@pytest.fixture
def rig():
    """An engine over the Recurrence."""
    return Rig()
