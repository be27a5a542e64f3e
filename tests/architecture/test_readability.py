"""What a reader feels: short functions, few parameters, shallow nesting, small classes, plain docstrings.

How long a file is follows from its one idea and is not counted.
"""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = ("service", "client/streamcell", "model", "loadtest", "bench")

MAX_FUNCTION_LINES = 50
MAX_POSITIONAL = 6  # more parameters go by keyword
MAX_PARAMETERS = 8
# More of them, positional and in all: a Step is made for each message, and keywords would double its cost; a
# Block's columns are one table.
WIDE = {"service/engine/work.py": (7, 10)}
MAX_NESTING = 3  # blocks within blocks
MAX_PUBLIC_NAMES = 26  # of a class, attributes included; a plain value's fields do not count
# Classes with a larger surface, and why.
LARGE = {"Network": "its methods and buffers are the artifact's script, which is one class"}

BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
# Causatives and pointers: what happens is said by a verb of its own, and each docstring stands alone.
DIALECT = re.compile(r"(Has|Have|Tells?|Lets?|Does (so|the same)|Says so|The same)\b")


def files():
    """Returns the source files that are written by hand."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if "_pb2" not in path.name and "build" not in path.parts]


def name_of(path):
    """Names a file in a test's id."""
    return str(path.relative_to(ROOT))


@functools.cache
def nodes(path, *kinds):
    """Returns the nodes of some kinds in a file."""
    return [node for node in ast.walk(ast.parse(path.read_text(), str(path))) if isinstance(node, kinds)]


def functions(path):
    """Returns the functions and methods of a file."""
    return nodes(path, ast.FunctionDef, ast.AsyncFunctionDef)


def nesting(node, level=0):
    """Returns how many blocks lie within each other below a node; an elif is no deeper than its if."""
    deepest = level
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, SCOPES):
                continue
            is_elif = isinstance(node, ast.If) and name == "orelse" and isinstance(child, ast.If)
            below = level + (isinstance(child, BLOCKS) and not is_elif)
            deepest = max(deepest, nesting(child, below))
    return deepest


def is_value(node):
    """Returns whether a class is a plain value: a dataclass, a NamedTuple, an Enum or a Protocol."""
    bases = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
    decorators = {ast.unparse(each).split("(")[0].split(".")[-1] for each in node.decorator_list}
    return "dataclass" in decorators or bool(bases & {"NamedTuple", "Enum", "IntEnum", "StrEnum", "Protocol"})


def public_names(node):
    """Returns the public methods and attributes of a class."""
    names = set()
    for each in node.body:
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(each.name)
        elif isinstance(each, ast.AnnAssign):
            names.add(ast.unparse(each.target))
        elif isinstance(each, ast.Assign):
            names |= {ast.unparse(target) for target in each.targets}
    stored = (each for each in ast.walk(node) if isinstance(each, ast.Attribute))
    names |= {
        each.attr for each in stored if isinstance(each.ctx, ast.Store) and ast.unparse(each.value) == "self"
    }
    return {name for name in names if not name.startswith("_")}


FILES = files()


@pytest.mark.parametrize("path", FILES, ids=name_of)
class TestCode:
    """Bounds on what is read at once."""

    def test_functions_are_short(self, path):
        """Decorators and docstring included."""
        for node in functions(path):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            assert node.end_lineno - first + 1 <= MAX_FUNCTION_LINES, (node.name, node.lineno)

    def test_calls_have_few_parameters(self, path):
        """Few in all, and fewer by position."""
        max_positional, max_parameters = WIDE.get(name_of(path), (MAX_POSITIONAL, MAX_PARAMETERS))
        for node in functions(path):
            given = node.args
            positional = [
                each.arg for each in given.posonlyargs + given.args if each.arg not in ("self", "cls")
            ]
            assert len(positional) <= max_positional, (node.name, node.lineno)
            assert len(positional) + len(given.kwonlyargs) <= max_parameters, (node.name, node.lineno)

    def test_blocks_are_shallow(self, path):
        """A loop in a condition in a loop is enough."""
        for node in functions(path):
            assert nesting(node) <= MAX_NESTING, (node.name, node.lineno)

    def test_classes_are_small(self, path):
        """A class is one idea, with a surface that fits one screen."""
        for node in nodes(path, ast.ClassDef):
            if not is_value(node) and node.name not in LARGE:
                assert len(public_names(node)) <= MAX_PUBLIC_NAMES, (node.name, sorted(public_names(node)))


@pytest.mark.parametrize("path", FILES, ids=name_of)
class TestWords:
    """Docstrings in plain words."""

    def test_every_module_has_a_docstring(self, path):
        """It says what the module owns."""
        assert ast.get_docstring(ast.parse(path.read_text()))

    def test_docstrings_say_what_happens(self, path):
        """No docstring begins with a causative or points to the one above it."""
        for node in [*functions(path), *nodes(path, ast.ClassDef)]:
            text = ast.get_docstring(node) or ""
            assert not DIALECT.match(text), (node.name, node.lineno, text.splitlines()[0])
