"""`python -m tests.fuzz [NAME] --seconds N` fuzzes one target, or all of them on two cores.

With `--replay FILE` it runs one input. A crash is saved below .cache/fuzz, and printed with the command that
replays it; what reaches new lines is added to the target's corpus.
"""

import argparse
import importlib
import json
import pathlib
import random
import re
import subprocess
import sys
import threading

from tests.fuzz import NAMES, corpus

CACHE = corpus.ROOT / ".cache" / "fuzz"
ATHERIS = corpus.ROOT / ".cache" / "atheris"
MAX_SILENT_SECONDS = 120  # libFuzzer takes an input that runs for longer for a hang
INSTRUMENTED = ("service", "model.datasets", "streamcell.table", "streamcell.lines", "streamcell.convert")


def target(name):
    """Returns a target's module."""
    return importlib.import_module(f"tests.fuzz.{name}")


def fuzz_here(name, seconds):
    """Fuzzes in this process, which libFuzzer ends."""
    sys.path.append(str(ATHERIS))
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        module = target(name)
    folder = CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, raw in enumerate([*module.seeds(), *corpus.read(name)]):
        (folder / f"seed-{number}").write_bytes(raw)

    def mutate(raw, max_size, seed):
        chance = random.Random(seed)
        changed = atheris.Mutate(raw, max_size) if chance.random() < 0.3 else module.mutate(raw, chance)
        return changed[:max_size]

    flags = [
        f"-max_total_time={seconds}",
        f"-max_len={corpus.MAX_BYTES}",
        f"-artifact_prefix={CACHE}/{name}-",
    ]
    flags += [f"-timeout={MAX_SILENT_SECONDS}", "-rss_limit_mb=4096", "-reload=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, str(folder)], module.run, custom_mutator=mutate)
    atheris.Fuzz()


def fuzz(name, seconds):
    """Fuzzes a target in a process of its own, and prints what came of it; returns whether nothing broke."""
    command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(seconds), "--here"]
    log = CACHE / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        status = subprocess.run(command, cwd=corpus.ROOT, stdout=out, stderr=subprocess.STDOUT).returncode
    text = log.read_text(errors="replace")
    stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", text))
    covered = re.findall(r"cov: (\d+)", text) or ["0"]
    print(f"{name}: {json.dumps(stats)}, coverage {covered[0]} to {covered[-1]}, log in {log}", flush=True)
    for path in re.findall(r"Test unit written to (\S+)", text):
        print(f"{name}: CRASH saved; replay: python -m tests.fuzz {name} --replay {path}", flush=True)
    if status and "Test unit written" not in text:
        print(f"{name}: ended with status {status}", flush=True)
    return status == 0


def keep(name):
    """Adds to a target's corpus what reaches new lines."""
    module = target(name)
    found = [path.read_bytes() for path in sorted((CACHE / name).iterdir())]
    kept = corpus.distilled(module.run, [*module.seeds(), *corpus.read(name), *found])
    corpus.write(name, kept)
    print(f"{name}: {len(kept)} of {len(found)} inputs kept", flush=True)


def fuzz_all(seconds):
    """Fuzzes the router on one core and the other targets, one after another, on a second one."""
    others = [name for name in NAMES if name != "router"]
    is_clean = []

    def work(names):
        is_clean.extend(fuzz(name, seconds // len(names)) for name in names)

    workers = [threading.Thread(target=work, args=(names,)) for names in (["router"], others)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for name in NAMES:
        subprocess.run([sys.executable, "-m", "tests.fuzz", name, "--keep"], cwd=corpus.ROOT)
    return all(is_clean)


def main():
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--replay", type=pathlib.Path, help="runs one input")
    parser.add_argument("--keep", action="store_true", help="only distils what was found into the corpus")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.name is None:
        return 0 if fuzz_all(given.seconds) else 1
    if given.replay:
        target(given.name).run(given.replay.read_bytes())
        print("nothing broke")
    elif given.keep:
        keep(given.name)
    elif given.here:
        fuzz_here(given.name, given.seconds)
    else:
        is_clean = fuzz(given.name, given.seconds)
        keep(given.name)
        return 0 if is_clean else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
