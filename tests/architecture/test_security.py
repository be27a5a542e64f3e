"""SECURITY.md promises what tests hold, and names settings that there are."""

import dataclasses
import pathlib
import re

from service.config import Config

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()


def promises():
    """Returns each promise with what holds it."""
    section = TEXT.split("\n## What is promised\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    return [row for row in rows if row[0] not in ("promise", "---")]


def test_each_promise_names_its_test():
    """Or says that it has none; test_map.py checks that the tests are there."""
    assert len(promises()) > 15
    for promise, held_by in promises():
        assert promise.endswith("."), promise
        assert re.search(r"`test_\w+`|^no test: ", held_by), promise


def test_settings_that_it_names_exist():
    """Under the names of their flags."""
    flags = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(Config)}
    named = set(re.findall(r"`(--[a-z-]+)", TEXT))
    assert len(named) > 10
    assert named <= flags


def test_it_says_how_to_report_and_is_found():
    """By the repository's own way, without an address that nobody reads."""
    assert "security advisories" in TEXT.split("\n## How to report\n")[1].split("\n## ")[0]
    assert not re.search(r"[\w.]+@[\w.]+", TEXT)
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text()
