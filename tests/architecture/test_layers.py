"""The house's rules: which module imports which, who knows torch, grpc and asyncio, how long code may be."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Bottom up; a module imports from rows below its own alone, so modules of one row never import each other.
LAYERS = [
    {"arrays", "errors", "log", "manifest", "metrics", "pace", "process"},
    {"config", "faults", "store.base"},
    {"metrics_page"},
    {"artifact", "cuda", "sessions", "slots", "state", "store.redis_scripts", "store.sqlite_rows"},
    {"folder", "snapshot", "store.redis", "store.sqlite", "work"},
    {"store.urls"},
    {"scheduler"},
    {"admission"},
    {"columns", "runner"},
    {"staged", "undo"},
    {"residents"},
    {"engine"},
    {"changes", "loading", "moves", "versions"},
    {"write_behind"},
    {"catalog", "keeper", "statuses"},
    {"models", "rpc"},
    {"servicers.values"},
    {"servicers.convert", "servicers.held", "servicers.selections", "servicers.turns"},
    {"servicers.bindings"},
    {"servicers.frames", "servicers.inference_tensors", "servicers.steps"},
    {"servicers.inference_request", "servicers.stream"},
    {
        "servicers.inference_about",
        "servicers.inference_errors",
        "servicers.inference_heads",
        "servicers.inference_runs",
    },
    {"servicers.inference_sequences"},
    {"servicers.inference_reply"},
    {"servicers.inference_work"},
    {"servicers.inference_stream"},
    {
        "servicers.channelz",
        "servicers.health",
        "servicers.inference",
        "servicers.reflection",
        "servicers.streamcell",
    },
    {"control", "fronts.envoy_admin", "fronts.envoy_process", "fronts.grpcio", "fronts.wire"},
    {"fronts.carried", "workers"},
    {"fronts.cors", "fronts.web_text", "fronts.web_values"},
    {"fronts.web"},
    {"fronts.envoy"},
    {"server", "supervisor"},
    {"worker"},
    {"__main__"},
]
ROW = {module: row for row, modules in enumerate(LAYERS) for module in modules}

TORCH = {"artifact", "cuda", "state", "runner", "staged", "server"}  # server is the composition root
GRPC = {"fronts.grpcio", "server"}  # server tells the library's version
ASYNCIO_FROM = ROW["engine"]
ASYNCIO_TOO = {"store.redis", "store.sqlite"}  # the stores' clients: they wait for a network or a disk


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


def test_every_module_is_in_the_table():
    """A new module is given its layer here; one that is gone leaves the table."""
    assert set(SERVICE) == set(ROW)
    assert len(ROW) == sum(len(modules) for modules in LAYERS), "a module stands in two layers"


@pytest.mark.parametrize("module", sorted(SERVICE))
def test_imports_go_down_only(module):
    """A module imports from strictly lower rows; hence there are no cycles either."""
    wrong = {name for name in within_service(SERVICE[module]) if ROW[name] >= ROW[module]}
    assert not wrong, f"service/{module} must not import {sorted(wrong)}"


def test_packages_files_have_no_code():
    """The __init__ files of service/ hold a docstring alone, so that importing a module imports no other."""
    for name, path in sources("service").items():
        if name.endswith("__init__"):
            assert len(parsed(path).body) == 1, path
            assert ast.get_docstring(parsed(path)), path


@pytest.mark.parametrize("module", sorted(SERVICE))
def test_who_knows_what(module):
    """torch, grpc's server and asyncio are each known where they belong, and nowhere else."""
    known = packages(SERVICE[module])
    assert "torch" not in known or module in TORCH
    assert "grpc" not in known or module in GRPC
    assert "asyncio" not in known or ROW[module] >= ASYNCIO_FROM or module in ASYNCIO_TOO
    assert "uvloop" not in known or module in ("__main__", "worker")


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


def test_the_engine_needs_no_loop():
    """The engine is told how to be called soon: it can be turned by hand."""
    assert "asyncio" not in packages(SERVICE["engine"])


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


@pytest.mark.parametrize("module", ["service", "client/streamcell"])
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


FOLDERS = ["service", "client/streamcell", "model", "loadtest"]
FILES = [path for folder in FOLDERS for path in sources(folder).values()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_and_modules_are_short(path):
    """No function is longer than 50 lines, decorators and docstring included, no module longer than 350."""
    assert len(path.read_text().splitlines()) <= 350
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            assert node.end_lineno - first + 1 <= 50, f"{node.name} in line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_owns(path):
    """Every module begins with a docstring."""
    assert ast.get_docstring(parsed(path))
