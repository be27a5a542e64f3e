"""Owns the artifact's file: one TorchScript module with its manifest inside, written and read.

Knows nothing of how the network was trained or what the artifact is used for.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.errors import ArtifactError
from model.files import write_atomically
from model.manifest import Manifest
from model.network import Network

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """Pairs a network with its manifest."""

    script: Any
    """A torch.jit.ScriptModule, or a Network, with the methods `step`, `scan` and `forecast`."""
    manifest: Manifest

    def zero_state(self, num_rows: int) -> Tensor:
        """Returns the state of rows before their first step, (num_rows, S)."""
        return torch.zeros(num_rows, self.manifest.state_size)


@contextlib.contextmanager
def _without_deprecation_warning() -> Iterator[None]:
    """Silences torch's warning that TorchScript is deprecated; docs/adr/0001 says why it is used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        yield


def save_artifact(network: Network, manifest: Manifest, path: Path) -> None:
    """Scripts the network and writes it with its manifest to `path`, whole or not at all."""
    buffer = io.BytesIO()
    with _without_deprecation_warning():
        script = torch.jit.script(network.eval())
        torch.jit.save(script, buffer, _extra_files={_MANIFEST: manifest.to_json().encode()})
    write_atomically(path, buffer.getvalue())


def load_artifact(path: Path) -> Artifact:
    """Reads an artifact; ArtifactError names the file and what is wrong with it."""
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    extra: dict[str, Any] = {_MANIFEST: ""}
    try:
        with _without_deprecation_warning():
            script = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError, ValueError) as error:
        first_line = str(error).strip().split("\n", 1)[0]
        raise ArtifactError(f"{path}: not a TorchScript file, or damaged: {first_line[:200]}") from error
    if not extra[_MANIFEST]:
        raise ArtifactError(f"{path}: no {_MANIFEST} inside")
    try:
        manifest = Manifest.from_json(extra[_MANIFEST])
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    missing = [method for method in ("step", "scan", "forecast") if not hasattr(script, method)]
    if missing:
        raise ArtifactError(f"{path}: the script has no method {missing[0]}")
    return Artifact(script, manifest)
