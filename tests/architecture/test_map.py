"""ARCHITECTURE.md is a map: its table is the one that imports are held to, and its files are there."""

import pathlib
import re

from tests.architecture.test_layers import FLOORS

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()


def section(title):
    """Returns the text under a heading."""
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_rooms_are_those_that_imports_are_held_to():
    """Floor by floor, the top one first."""
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", section("The server's rooms"), re.MULTILINE)
    assert [int(floor) for floor, _ in rows] == list(range(len(FLOORS)))[::-1]
    assert [set(re.findall(r"`([\w.]+)`", rooms)) for _, rooms in rows] == FLOORS[::-1]


def test_the_way_of_a_step_is_ten_lines_of_files_that_exist():
    """From a front to the runtime and back."""
    text = section("A step, from the front to the cell and back")
    assert len(re.findall(r"^\d+\. ", text, re.MULTILINE)) == 10
    files = re.findall(r"`([\w/]+\.py)`", text)
    assert [name for name in files if not (ROOT / "service" / name).is_file()] == []
    rooms = [name.rsplit("/", 1)[0] for name in files]
    assert list(dict.fromkeys(rooms))[:6] == [
        "fronts/envoy", "fronts", "rpc", "servicers/streamcell", "servicers", "catalog",
    ]  # fmt: skip


def test_each_word_of_the_glossary_stands_once():
    """One word, one meaning."""
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", section("Words"), re.MULTILINE)
    words = [word.strip() for row in rows for word in row.split(",")]
    assert len(words) == len(set(words))
    assert len(words) > 40


def test_tests_that_documents_name_exist():
    """A document that says which test holds its promise is right about it."""
    defined = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"def (test_\w+)\(", path.read_text()))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        named = set(re.findall(r"`(test_\w+)`", path.read_text()))
        assert named <= defined, (path.relative_to(ROOT), named - defined)


def test_links_lead_to_files():
    """In every document of the project's own."""
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "client" / "README.md"]
    for path in documents:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"
