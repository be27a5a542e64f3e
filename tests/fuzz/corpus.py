"""A target's corpus, one packed file each: a line of base64 for each entry."""

import base64
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent / "corpus"
ROOT = pathlib.Path(__file__).parents[2]
MAX_ENTRIES = 300
MAX_BYTES = 4096  # of an entry
_COVERED = tuple(str(ROOT / name) for name in ("service", "model/datasets", "client/streamcell/table"))


def read(name):
    """Returns the entries of a target's corpus."""
    path = FOLDER / f"{name}.txt"
    return [base64.b64decode(line) for line in path.read_text().split()] if path.exists() else []


def write(name, entries):
    """Writes a target's corpus, the shortest entries first."""
    lines = [base64.b64encode(entry).decode() for entry in sorted(entries, key=lambda raw: (len(raw), raw))]
    (FOLDER / f"{name}.txt").write_text("\n".join(lines) + "\n")


def distilled(run, entries):
    """Returns the entries, shortest first, that reach a pair of lines that no entry before them reaches."""
    reached, kept = set(), []
    for raw in sorted(set(entries), key=lambda raw: (len(raw), raw)):
        try:
            found = lines_of(run, raw)
        except Exception:  # noqa: S112 (an input that breaks something is saved as a crash, not here)
            continue
        if len(raw) <= MAX_BYTES and len(kept) < MAX_ENTRIES and found - reached:
            reached |= found
            kept.append(raw)
    return kept


def lines_of(run, raw):
    """Returns the pairs of lines of the project, one after the other, that an input reaches."""
    found = set()

    def trace(frame, event, _):
        if not frame.f_code.co_filename.startswith(_COVERED):
            return None
        last = 0
        code = frame.f_code

        def each(frame, event, _):
            nonlocal last
            if event == "line":
                found.add((code, last, frame.f_lineno))
                last = frame.f_lineno
            return each

        return each

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run(raw)
    finally:
        sys.settrace(before)
    return found
