"""The layers: which room imports which, and who knows torch, grpc and asyncio."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Bottom up: a room imports from floors below its own alone, so rooms of one floor do not know each other.
# ARCHITECTURE.md has the same table. A room is a folder with all in it, or a file.
FLOORS = [
    {"arrays", "errors", "file_version", "line_lists"},
    {"config"},
    {"telemetry", "addresses", "settings_report"},
    {"background", "futures", "accounts", "exposure"},
    {"runtime", "store", "rpc", "watched_files"},
    {"fronts.inflating", "tls"},
    {"engine", "fronts.grpcio", "fronts.envoy", "identity"},
    {"persistence", "processes", "commands"},
    {"catalog"},
    {"servicers.stream_backpressure", "servicers.turns", "servicers.values"},
    {"servicers.streamcell", "servicers.inference", "servicers.standard"},
    {"server"},
    {"worker"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

TORCH = {"runtime", "server"}  # server is the composition root
GRPC = {"fronts.grpcio", "server"}  # server tells the library's version
UVLOOP = {"__main__", "worker"}
# The engine is told how to be called soon, so that a test can turn it by hand.
NO_ASYNCIO = {"config", "errors", "arrays", "telemetry", "runtime", "rpc", "engine"}


def sources(folder):
    """Returns dotted name below a folder -> path, generated files and package files without code aside."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT / folder).with_suffix("").parts
        is_foreign = "build" in parts or any(part.endswith(".egg-info") for part in parts)
        if not is_foreign and "_pb2" not in path.name:
            found[".".join(parts)] = path
    return found


def modules_of_service():
    """Returns the modules of service/, its packages' own files apart."""
    return {name: path for name, path in sources("service").items() if not name.endswith("__init__")}


@functools.cache
def parsed(path):
    """Returns a file's syntax tree."""
    return ast.parse(path.read_text(), str(path))


@functools.cache
def imports(path):
    """Returns the dotted names that a file imports, wherever in it; `from a import b` as a and a.b."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(path):
    """Returns the top-level packages that a file imports."""
    return {name.split(".")[0] for name in imports(path)}


def within_service(path):
    """Returns the modules of service/ that a file imports."""
    names = {name.removeprefix("service.") for name in imports(path) if name.startswith("service.")}
    return names & set(SERVICE)


SERVICE = modules_of_service()


def room_of(module):
    """Returns the room that a module of service/ stands in; None where it stands in none."""
    parts = module.split(".")
    names = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((name for name in names if name in FLOOR), None)


def test_every_module_has_a_room():
    """A new module stands in a room of the table, and every room of the table holds a module."""
    assert {room_of(module) for module in SERVICE} == set(FLOOR)
    assert len(FLOOR) == sum(len(rooms) for rooms in FLOORS), "a room stands on two floors"


@pytest.mark.parametrize("module", sorted(SERVICE))
def test_imports_go_down_only(module):
    """A module imports from its own room and from rooms on strictly lower floors."""
    room = room_of(module)
    others = {name for name in within_service(SERVICE[module]) if room_of(name) != room}
    wrong = {name for name in others if FLOOR[room_of(name)] >= FLOOR[room]}
    assert not wrong, f"service/{module} must not import {sorted(wrong)}"


def test_packages_files_have_no_code():
    """The __init__ files of service/ hold a docstring alone, so that importing a module imports no other."""
    for name, path in sources("service").items():
        if name.endswith("__init__"):
            assert len(parsed(path).body) == 1, path
            assert ast.get_docstring(parsed(path)), path


@pytest.mark.parametrize("module", sorted(SERVICE))
def test_who_knows_what(module):
    """torch, grpc's server and the event loop are each known where they belong, and nowhere else."""
    known, room = packages(SERVICE[module]), room_of(module)
    assert "torch" not in known or room in TORCH
    assert "grpc" not in known or room in GRPC
    assert "uvloop" not in known or room in UVLOOP
    assert "asyncio" not in known or room not in NO_ASYNCIO


def test_the_server_takes_from_grpc_its_version_alone():
    """The composition root names the library's version; its server is the front's business."""
    tree = parsed(SERVICE["server"])
    taken = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "grpc"
    }
    assert taken == {"__version__"}
    assert {name for name in imports(SERVICE["server"]) if name.split(".")[0] == "grpc"} == {"grpc"}


@pytest.mark.parametrize(
    ("folder", "stranger"),
    [
        ("service", "model"), ("service", "loadtest"), ("service", "bench"), ("service", "tests"),
        ("model", "service"), ("model", "grpc"), ("model", "streamcell"), ("model", "tests"),
        ("client/streamcell", "service"), ("client/streamcell", "model"), ("client/streamcell", "torch"),
        ("client/streamcell", "tests"), ("loadtest", "service"), ("loadtest", "torch"),
    ],
)  # fmt: skip
def test_strangers(folder, stranger):
    """Service and model meet in the artifact alone; the client and the load test know neither."""
    files = sources(folder)
    if folder == "loadtest" and not files:
        pytest.skip("there is no loadtest/")
    assert files
    offenders = [name for name, path in files.items() if stranger in packages(path)]
    assert not offenders


def test_the_client_library_knows_its_own_protocol_alone():
    """The Open Inference Protocol's messages lie beside the client's, and a client never loads them.

    Other clients' messages have the same names, of which a process can have one set only.
    """
    for name, path in sources("client/streamcell").items():
        assert not any(each.startswith("streamcell.inference") for each in imports(path)), name


@pytest.mark.parametrize("module", ["service", "client/streamcell", "model", "loadtest", "bench"])
def test_no_cycles(module):
    """No module is reached from itself by imports."""
    files = sources(module)
    root = module.rsplit("/", 1)[-1]
    edges = {
        name: {other for other in files if f"{root}.{other}" in imports(path)} for name, path in files.items()
    }
    for start in edges:
        seen, open_ones = set(), set(edges[start])
        while open_ones:
            name = open_ones.pop()
            seen.add(name)
            open_ones |= edges[name] - seen
        assert start not in seen, f"{start} imports itself by way of others"
