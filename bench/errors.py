"""What stops a benchmark."""


class BenchError(Exception):
    """It cannot go on; the message is one line that says why."""
