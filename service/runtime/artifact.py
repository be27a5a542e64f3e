"""An artifact: a TorchScript file with its manifest, loaded onto a device and tried out.

Owns the reading of the file and the checks of the script's three methods. Does not know sessions or
the pool.
"""

import hashlib
import io
import pathlib
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from service.errors import ConfigError
from service.runtime import manifest
from service.runtime.allowed_artifacts import AllowedArtifacts, NotAllowedError
from service.runtime.manifest import Manifest, ManifestError

FILE_NAME = "model.pt"
_MANIFEST_FILE = "manifest.json"
DIGEST_BYTES = 16
_METHODS = ("step", "scan", "forecast")


class _ArtifactError(ValueError):
    """A file is not a usable artifact; the message says why, without the path."""


class Artifact:
    """A loaded model: its names, its manifest and its scripted methods.

    Args:
        name, version: the names that the model is served under, from the file's folder.
        digest: of the file; a snapshot names its session's model by this digest.

    The methods take and return tensors on `device`; F inputs, O outputs, S state values, K future values.
    """

    def __init__(
        self,
        name: str,
        version: str,
        about: Manifest,
        script: torch.jit.ScriptModule,
        device: torch.device,
        *,
        digest: bytes = bytes(DIGEST_BYTES),
    ) -> None:
        self.name = name
        self.version = version
        self.manifest = about
        self.device = device
        self.script = script
        self.digest = digest

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Runs one step of B rows: x [B, F], time int64 [B], state [B, S] -> y [B, O], state [B, S]."""
        return cast(tuple[Tensor, Tensor], self.script.step(x, time, state))

    def scan(self, x: Tensor, time: Tensor, lengths: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Runs lengths[b] <= T steps of each row: x [B, T, F], time [B, T] -> y [B, T, O], state [B, S]."""
        return cast(tuple[Tensor, Tensor], self.script.scan(x, time, lengths, state))

    def forecast(self, state: Tensor, time: Tensor, horizon: int, future: Tensor) -> Tensor:
        """Predicts H steps ahead: state [B, S], last time [B], future [B, H, K] -> y [B, H, O]."""
        return cast(Tensor, self.script.forecast(state, time, horizon, future))


def discover(folder: pathlib.Path) -> Iterator[tuple[str, str, pathlib.Path]]:
    """Yields name, version and path of every NAME/VERSION/model.pt below a folder, sorted.

    Raises:
        ConfigError: there is no such folder, or no such file below the folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"--models: {folder} is not a folder")
    paths = sorted(folder.glob(f"*/*/{FILE_NAME}"))
    if not paths:
        raise ConfigError(f"--models: {folder} holds no NAME/VERSION/{FILE_NAME}")
    for path in paths:
        yield path.parent.parent.name, path.parent.name, path


def load(
    name: str,
    version: str,
    path: pathlib.Path,
    device: torch.device,
    *,
    allowed: AllowedArtifacts | None = None,
) -> Artifact:
    """Returns the artifact in a file, on a device, after a trial of its methods on the manifest's shapes.

    The file is read once: the bytes that are looked up in the list `allowed`, and whose digest names the
    artifact, are those that are loaded.

    Raises:
        ConfigError: the file is not allowed, damaged, of another format version, or does not do what its
            manifest says.
    """
    try:
        raw = _bytes_of(path)
        (allowed or AllowedArtifacts()).check(raw)
        script, about = _read(raw, device)
        artifact = Artifact(name, version, about, script, device, digest=_digest(raw))
        _try_out(artifact)
    except (ManifestError, NotAllowedError, _ArtifactError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return artifact


def digest_of(path: pathlib.Path) -> bytes:
    """Returns the digest that identifies a file."""
    return _digest(path.read_bytes())


def _digest(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=DIGEST_BYTES).digest()


def _bytes_of(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _ArtifactError(f"not a readable TorchScript file ({error.strerror or error})") from None


def _read(raw: bytes, device: torch.device) -> tuple[torch.jit.ScriptModule, Manifest]:
    """Returns the script and the manifest in a file's bytes."""
    files = {_MANIFEST_FILE: b""}
    try:
        script = torch.jit.load(  # type: ignore[no-untyped-call]
            io.BytesIO(raw), map_location=device, _extra_files=files
        )
    except (RuntimeError, ValueError, OSError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _ArtifactError(f"not a readable TorchScript file ({first_line})") from None
    about = manifest.parse(_text(files[_MANIFEST_FILE]))
    missing = [method for method in _METHODS if not hasattr(script, method)]
    if missing:
        raise _ArtifactError(f"the script has no method {', '.join(missing)}")
    return script.eval(), about


def _text(content: bytes | str) -> str:
    # torch replaces the entry by the file's content, as text; without such a file the entry stays as it was.
    if not content:
        raise ManifestError(f"no {_MANIFEST_FILE} inside: it was not exported as an artifact")
    if isinstance(content, str):
        return content
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ManifestError(f"{_MANIFEST_FILE} inside is not UTF-8") from None


def _try_out(artifact: Artifact) -> None:
    """Runs each method once on zeros: wrong shapes show here, not at the first client's step.

    Raises:
        _ArtifactError: a method fails, or its results have other types or shapes than the manifest says.
    """
    about, device = artifact.manifest, artifact.device
    b, t, h = 2, 3, 2
    num_inputs, num_outputs, size = len(about.inputs), len(about.outputs), about.state_size
    x = torch.zeros(b, t, num_inputs, device=device)  # (B, T, F)
    time = torch.zeros(b, t, dtype=torch.int64, device=device)  # (B, T)
    state = torch.zeros(b, size, device=device)  # (B, S)
    lengths = torch.tensor([t, 1], device=device)  # (B,)
    future = torch.zeros(b, h, len(about.future), device=device)  # (B, H, K)
    try:
        with torch.inference_mode():
            y, after = artifact.step(x[:, 0], time[:, 0], state)
            ys, scanned = artifact.scan(x, time, lengths, state)
            ahead = artifact.forecast(after, time[:, 0], h, future)
    except Exception as error:  # a script may raise anything
        last_line = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise _ArtifactError(f"the script fails on an input of its manifest's shape ({last_line})") from None
    results = (y, after, ys, scanned, ahead)
    if any(tensor.dtype != torch.float32 for tensor in results):
        dtypes = ", ".join(str(tensor.dtype) for tensor in results)
        raise _ArtifactError(f"the script gives {dtypes}; all must be float32")
    found = [tuple(tensor.shape) for tensor in results]
    wanted = [(b, num_outputs), (b, size), (b, t, num_outputs), (b, size), (b, h, num_outputs)]
    if found != wanted:
        raise _ArtifactError(f"the script gives shapes {found} where its manifest says {wanted}")
