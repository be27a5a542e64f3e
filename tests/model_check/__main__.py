"""Searches the model of a session's ownership, docs/adr/0008-ownership.pml, exhaustively with spin.

`python -m tests.model_check` searches the protocol as it is, within several bounds, and then with parts
left out: each of those must lead to an error, as a model that finds none proves nothing.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

MODEL = pathlib.Path(__file__).parents[2] / "docs" / "adr" / "0008-ownership.pml"
# What clients, the store and servers do at most; the model names the bounds that are not given.
BOUNDS = (
    "-DMAX_STEPS=1 -DMAX_FETCHES=1",
    "-DMAX_STEPS=1 -DMAX_FAILURES=0",
    "-DMAX_STEPS=2 -DMAX_LOSSES=0",
    "-DSERVERS=3 -DMAX_STEPS=1 -DMAX_FETCHES=3 -DMAX_LOSSES=0",
    "-DMAX_STEPS=2 -DMAX_FETCHES=2 -DMAX_LOSSES=1 -DMAX_FAILURES=1",
)
LEFT_OUT = {
    "FENCE": "a write is done at any epoch, by anybody",
    "RISING_EPOCHS": "a row that is made anew begins again",
    "REMEMBERED_ENDS": "the store forgets deletions",
    "CONFIRMATION": "an idle session is answered from memory",
    "CONFIRMATION_AFTERWARDS": "a write of before the request confirms the owner",
    "BOUND": "a lost row is claimed whatever has become of it",
    "OWN": "a row of one's own at another epoch is another server's",
}


def search(*flags):
    """Searches the model; returns the number of states, and the assertion that does not hold, or ""."""
    with tempfile.TemporaryDirectory() as folder:

        def run(*command):
            found = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            assert found.returncode == 0, found.stdout + found.stderr
            return found.stdout

        run("spin", *flags, "-a", str(MODEL))
        run("gcc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=2048", "-o", "pan", "pan.c")
        text = run("./pan", "-m1000000")
    assert "max search depth too small" not in text, text
    broken = re.search(r"assertion violated (.*) \(at depth", text)
    states, errors = (int(re.search(what, text)[1]) for what in (r"(\d+) states, stored", r"errors: (\d+)"))
    assert bool(errors) == bool(broken), text
    return states, broken[1] if broken else ""


def main():
    """Prints what was found. Returns the exit status."""
    if missing := [name for name in ("spin", "gcc") if shutil.which(name) is None]:
        print(f"model-check: skipped, as {' and '.join(missing)} is not here and cannot be installed")
        return 0
    is_right = True
    for bounds in BOUNDS:
        states, broken = search(*bounds.split())
        is_right &= not broken
        print(f"{states:10,} states, {broken or 'no error'}: {bounds}", flush=True)
    for name, meaning in LEFT_OUT.items():
        states, broken = search(f"-DWITHOUT_{name}")
        is_right &= bool(broken)
        print(
            f"{states:10,} states, {broken or 'NO ERROR, but there is one'}: WITHOUT_{name}, {meaning}",
            flush=True,
        )
    print("the protocol holds, and each part is needed" if is_right else "model-check: FAILED")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
