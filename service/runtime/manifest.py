"""The manifest of an artifact, read and checked: what the rows of input, output and state mean.

Owns the format on the service's side. Does not know TorchScript, nor the exporter.
"""

import dataclasses
import json
from typing import Any

FORMAT_VERSION = 1
_MAX_INTERVAL_SECONDS = 366 * 86400.0
_MAX_STATE_SIZE = 1 << 28  # the bound of a snapshot's sizes: a session beyond it could not be stored


class ManifestError(ValueError):
    """The manifest is damaged, or of another format version; the message says what is wrong."""


@dataclasses.dataclass(frozen=True, slots=True)
class Variable:
    """One named value of a row; the fields are those of the API's Variable."""

    name: str
    unit: str = ""
    target: str = ""
    role: str = ""
    quantile: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class StateField:
    """A part of the state row: `size` float32 values from `offset` on."""

    name: str
    offset: int
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact says about itself; `text` is the manifest's JSON."""

    name: str
    version: str
    description: str
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    future: tuple[Variable, ...]
    state_size: int
    state_layout: tuple[StateField, ...]
    uses_time: bool
    step_interval_seconds: float
    text: str

    @property
    def step_interval_ns(self) -> int:
        """The step interval in nanoseconds; 0 if the series has none."""
        return round(self.step_interval_seconds * 1e9)


def parse(text: str) -> Manifest:
    """Returns the manifest that `text` (JSON) holds.

    Raises:
        ManifestError: not JSON, another format version, or a part is missing or contradicts another.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"the manifest is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ManifestError("the manifest is not a JSON object")
    found = raw.get("format_version")
    if found != FORMAT_VERSION:
        raise ManifestError(
            f"format_version is {found!r}; this server reads {FORMAT_VERSION}: export it again"
        )
    try:
        return _build(raw, text)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ManifestError):
            raise
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ManifestError(f"the manifest is damaged: {what}") from None


def _build(raw: dict[str, Any], text: str) -> Manifest:
    manifest = Manifest(
        name=_text(raw["name"]),
        version=_text(raw["version"]),
        description=_text(raw.get("description", "")),
        inputs=_variables(raw, "inputs"),
        outputs=_variables(raw, "outputs"),
        future=_variables(raw, "future"),
        state_size=_whole(raw["state"]["size"]),
        state_layout=tuple(
            StateField(_text(part["name"]), _whole(part["offset"]), _whole(part["size"]))
            for part in raw["state"]["layout"]
        ),
        uses_time=_truth(raw["uses_time"]),
        step_interval_seconds=float(raw["step_interval_seconds"]),
        text=text,
    )
    _check(manifest)
    return manifest


def _variables(raw: dict[str, Any], key: str) -> tuple[Variable, ...]:
    rows = tuple(
        Variable(
            name=_text(row["name"]),
            unit=_text(row.get("unit") or ""),
            target=_text(row.get("target") or ""),
            role=_text(row.get("role") or ""),
            quantile=float(row.get("quantile") or 0.0),
        )
        for row in raw[key]
    )
    if len({row.name for row in rows}) < len(rows):
        raise ManifestError(f"the manifest names one of its {key} twice")
    return rows


def _text(value: object) -> str:
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair of \uXXXX, which JSON takes and no message does
        raise ValueError(f"{text!a} is not Unicode text") from None
    return text


def _whole(number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{number!r} stands where a whole number belongs")
    return number


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"uses_time is {value!r}, not true or false")
    return value


def _check(manifest: Manifest) -> None:
    if not manifest.inputs or not manifest.outputs:
        raise ManifestError("the manifest has no inputs or no outputs")
    if manifest.step_interval_seconds < 0:
        raise ManifestError("step_interval_seconds is negative")
    if not manifest.step_interval_seconds <= _MAX_INTERVAL_SECONDS:  # also refuses NaN
        raise ManifestError(f"step_interval_seconds is {manifest.step_interval_seconds}, more than a year")
    offset = 0
    for part in manifest.state_layout:
        if part.offset != offset or part.size < 1:
            raise ManifestError(f"state field {part.name!r} does not begin where the one before it ends")
        offset += part.size
    if offset > _MAX_STATE_SIZE:
        raise ManifestError(f"the state has {offset} values, more than {_MAX_STATE_SIZE}")
    if offset != manifest.state_size:
        raise ManifestError(f"the state fields cover {offset} values of {manifest.state_size}")
