"""CSV files: `model train` and `streamcell predict` read the same rows, or refuse the same line."""

import asyncio
import os
import pathlib
import re
import tempfile

import numpy as np
from streamcell.lines import read_lines
from streamcell.table import CsvError, SeriesReader

from model import datasets
from model.errors import SeriesError
from tests import csv_vectors
from tests.fuzz import mutations

PARTS = [
    "2014-07-01",
    "2014-07-01 00:30:00",
    "2014-07-01T01:00:00Z",
    "+02:00",
    "1404172800",
    "20140701",
    "201407",
]
PARTS += [
    "timestamp",
    "time",
    "value",
    "date",
    "Unnamed: 0",
    "1.5",
    "-3e2",
    "nan",
    "inf",
    "1e39",
    "1_0",
    "\u0661",
]
PARTS += [
    ",",
    ",",
    "\n",
    "\n",
    "\r",
    "\r\n",
    '"',
    ";",
    "\t",
    "|",
    "#",
    " ",
    "\0",
    "\ufeff",
    "\u2028",
    "\x85",
    "\x0b",
    "\x1c",
]
_FILE = pathlib.Path(tempfile.mkdtemp(prefix="streamcell-fuzz-")) / "f.csv"


def run(raw):
    """Reads a file with both readers, and compares: the rows, or the line of the refusal."""
    _FILE.write_bytes(raw)
    names = columns()
    trained = refusal = read = theirs = None
    try:
        trained = datasets.read_csv(_FILE)
    except SeriesError as error:
        refusal = str(error)
    try:
        read = asyncio.run(predicted(names or ("value",)))
    except CsvError as error:
        theirs = str(error)
    if trained is not None:
        assert theirs is None
        assert [row.time_ns for row in read] == trained.times_ns.tolist()
        values = np.array([row.values for row in read], np.float64).astype(np.float32)
        assert values.tobytes() == trained.values.tobytes()
    elif "rows; at least" in refusal:  # too few to train on
        assert theirs is None or not names
    else:
        check_refusals(refusal, theirs, is_of_columns=names is None)


def columns():
    """Returns the names of the value columns; None if the header or the first row are refused."""
    try:
        lines = datasets._lines(_FILE)
        _, header = next(lines, (1, []))
        header = datasets._checked_header(_FILE, 1, header)
        _, first = next(lines, (2, []))
        first = datasets._without_empty_end(first, len(header))
        if len(first) != len(header):
            return None
        time_at = datasets._time_index("", header, first, wanted=None, values=())
        return tuple(header[at] for at in datasets._value_indices("", header, time_at, None))
    except SeriesError:
        return None


def check_refusals(refusal, theirs, *, is_of_columns):
    """Checks that both readers refuse a file, in one line of text, at the same line of the file."""
    assert "\n" not in refusal, refusal
    if is_of_columns and ("value column" in refusal or "time column" in refusal):
        return  # which columns a model wants, training cannot know
    assert theirs is not None, refusal
    assert "\n" not in theirs, theirs
    at, at_theirs = (int(re.search(r"\bline (\d+)", text)[1]) for text in (refusal, theirs))
    # Training looks at the whole file's encoding first, the command at each line as it comes.
    assert at == at_theirs or ("not UTF-8" in refusal and at_theirs < at), (refusal, theirs)


async def predicted(inputs):
    """Returns the rows of the file as the command reads them: each line as it comes."""
    reader = SeriesReader(str(_FILE), inputs, uses_time=True)
    descriptor = os.open(_FILE, os.O_RDONLY)
    try:
        return [row async for line in read_lines(descriptor) if (row := reader.feed(line)) is not None]
    except UnicodeDecodeError:
        raise CsvError(f"{_FILE}: line {reader.num_lines + 1}: not UTF-8 text") from None
    finally:
        os.close(descriptor)


def mutate(raw, chance):
    """Changes the text; one time in five its bytes."""
    if chance.random() < 0.2:
        return mutations.of_bytes(raw, chance)
    return mutations.of_text(raw.decode(errors="replace"), chance, PARTS).encode(errors="replace")


def seeds():
    """Returns the files of the contract of both readers."""
    return [each.raw for each in csv_vectors.VECTORS if len(each.raw) < 1000]
