"""The grpcio front under a loop whose turns are long."""

import subprocess
import sys

from tests.integration.conftest import BOUND_SECONDS, ROOT
from tests.integration.slow_turns import NUM_MESSAGES, NUM_STREAMS


def test_events_are_handled_in_few_turns_of_the_loop():
    """A message takes some turns to come in and to be answered, whether one stream has some or 64."""
    command = [sys.executable, "-m", "tests.integration.slow_turns"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=BOUND_SECONDS)
    # 64 turns to open the streams, one after the other, and 10 to 20 a message. Without reading the wake-ups
    # together it takes over 100 a message.
    assert int(found.stdout) < NUM_STREAMS + 50 * NUM_MESSAGES
