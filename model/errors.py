"""Owns the errors that a person at the command line can mend: each is one line and names what is wrong."""


class ModelError(Exception):
    """Base of the errors that commands print as one line, ending with a non-zero status."""


class SeriesError(ModelError):
    """Tells what is wrong with a file of a series, by file, line and column."""


class ArtifactError(ModelError):
    """Tells what is wrong with an artifact or a checkpoint."""


class OptionError(ModelError):
    """Tells which option's value cannot be used, and why."""
