"""Targets of coverage-guided fuzzing, one module each, and the corpus that it found.

A target module has `seeds()`, inputs of good form; `run(raw)`, which raises where bytes uncover a fault; and
`mutate(raw, chance)`, which changes an input and keeps its form. `python -m tests.fuzz` runs targets with
atheris. `make test` needs no atheris: it runs every entry of the corpus, and mutations by a seed, through the
same functions.
"""

NAMES = ("router", "snapshots", "manifests", "tables", "wire", "signatures", "lists")
