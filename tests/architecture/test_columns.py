"""Each column of sessions has one owner: only the class that declares a column writes to its elements."""

import ast
import pathlib

import pytest

SERVICE = pathlib.Path(__file__).parents[2] / "service"
TABLES = {
    "SessionTable": SERVICE / "engine" / "session_table.py",
    "ProgressTable": SERVICE / "engine" / "progress.py",
    "Durability": SERVICE / "engine" / "durability.py",
    "Ownership": SERVICE / "engine" / "ownership.py",
}
COLUMN_TYPES = {"Int64s", "Float32s", "Flags", "Prints"}


def declared(owner):
    """Returns the names of the arrays that a class declares, as fields or as attributes of self."""
    arrays = [
        node
        for node in ast.walk(owner)
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) in COLUMN_TYPES
    ]
    fields = {ast.unparse(node.target) for node in arrays if node in owner.body}
    attributes = {ast.unparse(node.target) for node in arrays}
    return fields | {name.removeprefix("self.") for name in attributes if name.startswith("self.")}


def columns_of(name):
    """Returns the names of a table's columns."""
    tree = ast.parse(TABLES[name].read_text())
    (table,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return declared(table)


COLUMNS = set().union(*(columns_of(name) for name in TABLES))


def assigned(node):
    """Returns the targets of a statement that writes or deletes."""
    if isinstance(node, ast.Assign | ast.Delete):
        return node.targets
    return [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For) else []


def written(tree):
    """Yields the columns whose elements are written somewhere in a syntax tree: `a.b.column[...] = ...`."""
    for node in ast.walk(tree):
        for target in assigned(node):
            for part in ast.walk(target):
                if (
                    isinstance(part, ast.Subscript)
                    and isinstance(part.value, ast.Attribute)
                    and part.value.attr in COLUMNS
                ):
                    yield part.value


def foreign_writes(tree):
    """Returns the writes to columns, except those to `self` in a class that declares the column."""
    owned = {
        id(column)
        for owner in ast.walk(tree)
        if isinstance(owner, ast.ClassDef)
        for column in written(owner)
        if ast.unparse(column.value) == "self" and column.attr in declared(owner)
    }
    return [
        f"{ast.unparse(column)} in line {column.lineno}"
        for column in written(tree)
        if id(column) not in owned
    ]


def test_every_table_has_columns():
    """The names of the columns are found in the tables' source."""
    assert {"generation", "last_used"} <= columns_of("SessionTable")
    assert {"next_step", "last_time", "_reply_y"} <= columns_of("ProgressTable")
    assert {"num_durable", "is_changed", "is_durable"} <= columns_of("Durability")


@pytest.mark.parametrize(
    "path", sorted(SERVICE.rglob("*.py")), ids=lambda path: str(path.relative_to(SERVICE))
)
def test_columns_are_written_by_their_owner_alone(path):
    """No module writes to a column, except for the class that declares the column."""
    assert not foreign_writes(ast.parse(path.read_text()))


@pytest.mark.parametrize(
    "line",
    [
        "sessions.durability.is_durable[slot] = True",
        "self.ownership.epoch[slot] += 1",
        "sessions.generation[slot], other = 1, 2",
        "progress.next_step[:] = 0",
        "del sessions.last_used[3]",
        "class SessionTable:\n    def open(self, slot):\n        self.durability.is_changed[slot] = True",
        "class Residents:\n    def open(self, slot):\n        self.generation[slot] = 1",
    ],
)
def test_a_foreign_write_is_found(line):
    """The check sees every form of assignment, at any depth, also in a class that owns other columns."""
    assert foreign_writes(ast.parse(line))


def test_an_owners_write_and_a_read_are_allowed():
    """A class may write to the columns that it declares, and any module may read them."""
    own = "class Ownership:\n    epoch: Int64s\n    def open(self, slot):\n        self.epoch[slot] = 1"
    assert not foreign_writes(ast.parse(own))
    assert not foreign_writes(ast.parse("number = sessions.ownership.epoch[slot]"))
