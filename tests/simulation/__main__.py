"""Runs seeds, or one of them with its trace; then looks for the planted bugs."""

import argparse
import functools
import multiprocessing
import sys
import time

from tests.simulation import world
from tests.simulation.planted import BUGS


def main():
    """Runs the seeds that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--bug", default="", choices=sorted(BUGS), help="a bug to plant, with --seed")
    parser.add_argument("--bugs", type=int, default=0, help="look for every planted bug in so many seeds")
    options = parser.parse_args()
    if options.seed is not None:
        outcome = world.run(options.seed, is_traced=options.trace, bug=options.bug)
        print(*outcome.lines, sep="\n")
        print(outcome.summary if outcome.failure else f"seed {options.seed}: well")
        return bool(outcome.failure)
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        num_failed = _run(pool, range(options.first, options.first + options.seeds))
        num_missed = _look_for_bugs(pool, options.bugs) if options.bugs else 0
    return bool(num_failed or num_missed)


def _run(pool, seeds):
    """Runs seeds; returns how many failed."""
    started, num_failed = time.monotonic(), 0
    for summary in pool.imap(world.failure_of, seeds, chunksize=20):
        if summary:
            num_failed += 1
            print(summary, flush=True)
    print(f"{len(seeds)} seeds in {time.monotonic() - started:.0f} s, {num_failed} failed", flush=True)
    return num_failed


def _look_for_bugs(pool, num_seeds):
    """Looks for each planted bug; returns how many were not found."""
    num_missed = 0
    found = pool.imap(functools.partial(world.find, num_seeds=num_seeds), BUGS)
    for bug, outcome in zip(BUGS, found, strict=True):
        num_missed += outcome is None
        what = f"not found in {num_seeds} seeds"
        if outcome is not None:
            what = f"found by seed {outcome.seed}: {outcome.failure}"
        print(f"planted: {bug} {what}", flush=True)
    return num_missed


if __name__ == "__main__":
    sys.exit(main())
