"""What is installed is what was locked: each file by its hash, but for torch."""

import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[2]
LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLIENT = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text())["project"]
HASH = re.compile(r" --hash=sha256:[0-9a-f]{64}")


def entries(name):
    """Returns the requirements of a lock, and the hashes of each."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    return {Requirement(line.split(" --hash=")[0]): HASH.findall(line) for line in text.splitlines()}


def versions(*names):
    """Returns name -> the specifier of each package in some locks."""
    return {canonicalize_name(each.name): each for name in names for each in entries(name)}


def commands(name):
    """Returns the commands of a file that install with pip, each in one line."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [part for line in text.splitlines() for part in line.split("&&")]
    return [line for line in lines if re.search(r"(pip|\$\(PIP\)).* install\b|pip install\b", line)]


@pytest.mark.parametrize("name", LOCKS)
class TestEachLock:
    """A version and hashes for each package, and nothing else."""

    def test_every_package_has_one_version_and_hashes(self, name):
        """And no address of an index, which is the machine's business."""
        found = entries(name)
        assert found
        for requirement, hashes in found.items():
            assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
            assert hashes, requirement
        text = re.sub(HASH, "", (ROOT / name).read_text())
        assert not re.search(r"https?:|--index|--find-links|--trusted", text)

    def test_torch_is_in_no_lock(self, name):
        """Its builds are different files of one version, of which the machine chooses one."""
        assert not {each for each in versions(name) if each.startswith(("torch", "nvidia", "triton-"))}


@pytest.mark.parametrize(
    ("wanted", "locks"),
    [
        ([*PROJECT["dependencies"], *CLIENT["dependencies"]], ["requirements.lock"]),
        (PROJECT["optional-dependencies"]["envoy"], ["requirements.lock"]),
        (PROJECT["optional-dependencies"]["redis"], ["requirements.lock"]),
        (PROJECT["optional-dependencies"]["train"], ["requirements.lock", "requirements-dev.lock"]),
        (PROJECT["optional-dependencies"]["dev"], ["requirements.lock", "requirements-dev.lock"]),
        (PROJECT["optional-dependencies"]["fuzz"], ["requirements-fuzz.lock"]),
    ],
    ids=["server", "envoy", "redis", "train", "dev", "fuzz"],
)
def test_the_locks_are_within_the_bounds(wanted, locks):
    """Each package that pyproject.toml names is locked, at a version that it allows."""
    locked = versions(*locks)
    for each in map(Requirement, wanted):
        if canonicalize_name(each.name) in ("torch", "streamcell", "streamcell-client"):
            continue
        (pin,) = locked[canonicalize_name(each.name)].specifier
        assert pin.version in each.specifier, each


def test_no_package_is_locked_twice():
    """The runtime's lock and the one for development are installed together."""
    assert not versions("requirements.lock").keys() & versions("requirements-dev.lock").keys()


def test_what_an_older_python_needs_is_locked_too():
    """With hashes pip takes nothing that is in no lock; Python 3.11.2, as in Debian 12, needs one more."""
    assert str(versions("requirements.lock")["async-timeout"].marker) == 'python_full_version < "3.11.3"'


@pytest.mark.parametrize("name", ["Makefile", "Dockerfile"])
def test_pip_installs_by_hash(name):
    """But for torch, which stands alone, and this project, whose dependencies are there by then."""
    found = [line for line in commands(name) if "$(LOCK)" not in line]  # which makes the locks
    assert len(found) >= 3
    for line in found:
        is_torch = re.search(r"\btorch==|\$\(TORCH\)", line) and "-r " not in line
        is_own = "--no-deps --no-build-isolation" in line
        assert is_torch or is_own or "--require-hashes" in line, line
