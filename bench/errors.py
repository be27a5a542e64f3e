"""The error that stops a benchmark."""


class BenchError(Exception):
    """The benchmark cannot go on. The message is one line that says why."""
