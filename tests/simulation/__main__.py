"""Runs seeds: `python -m tests.simulation --seeds 10000`, or one of them with its trace."""

import argparse
import multiprocessing
import sys
import time

from tests.simulation import world


def main():
    """Runs the seeds that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    if options.seed is not None:
        outcome = world.run(options.seed, is_traced=options.trace)
        print(*outcome.lines, sep="\n")
        print(outcome.summary if outcome.failure else f"seed {options.seed}: well")
        return bool(outcome.failure)
    started, failed = time.monotonic(), []
    seeds = range(options.first, options.first + options.seeds)
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for summary in pool.imap(world.failure_of, seeds, chunksize=20):
            if summary:
                failed.append(summary)
                print(summary, flush=True)
    seconds = time.monotonic() - started
    print(f"{options.seeds} seeds in {seconds:.0f} s, {len(failed)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
