"""Owns the errors that a person at the command line can mend: each is one line that names what is wrong.

    ModelError
    ├── SeriesError      a file of a series
    ├── ArtifactError    an artifact or a checkpoint
    └── OptionError      an option's value

Knows nothing of who raises them.
"""


class ModelError(Exception):
    """The base: commands print such an error as one line and end with status 2."""


class SeriesError(ModelError):
    """A file of a series cannot be used; the message names file, line and column."""


class ArtifactError(ModelError):
    """An artifact or a checkpoint cannot be used; the message names the file."""


class OptionError(ModelError):
    """An option's value cannot be used; the message says why."""
