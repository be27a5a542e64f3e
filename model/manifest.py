"""Owns the manifest: what an artifact says of itself, as JSON, and the check that it says it right.

Knows nothing of TorchScript or files.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from model.errors import ArtifactError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Column:
    """Names one input and its unit."""

    name: str
    unit: str


@dataclass(frozen=True)
class Output:
    """Names one output, the input it predicts, and what kind of prediction it is."""

    name: str
    target: str
    role: str
    quantile: float | None
    unit: str
    horizon_steps: int


@dataclass(frozen=True)
class StatePart:
    """Places one named part of the state row: `size` floats from `offset`."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Manifest:
    """Describes an artifact completely to whoever serves it."""

    name: str
    version: str
    description: str
    attribution: str
    inputs: tuple[Column, ...]
    outputs: tuple[Output, ...]
    state: tuple[StatePart, ...]
    uses_time: bool
    step_interval_seconds: float
    future: tuple[Column, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def state_size(self) -> int:
        """Floats in a state row."""
        return sum(part.size for part in self.state)

    def to_json(self) -> str:
        """Writes the manifest as the artifact carries it."""
        fields = asdict(self)
        fields["state"] = {"size": self.state_size, "layout": fields["state"]}
        return json.dumps({"format_version": FORMAT_VERSION, **fields}, indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Reads a manifest; ArtifactError names what is missing or wrong."""
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise ArtifactError(f"the manifest is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ArtifactError("the manifest is not a JSON object")
        version = fields.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ArtifactError(
                f"format_version {version!r} is not {FORMAT_VERSION}, the one understood here"
            )
        try:
            manifest = cls._from_fields(fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the manifest is incomplete or malformed: {error}") from error
        if fields["state"]["size"] != manifest.state_size:
            raise ArtifactError(
                f"the manifest's state size is {fields['state']['size']}, its layout's {manifest.state_size}"
            )
        return manifest

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> "Manifest":
        layout = tuple(StatePart(**part) for part in fields["state"]["layout"])
        columns = {key: tuple(Column(**column) for column in fields[key]) for key in ("inputs", "future")}
        outputs = tuple(Output(**output) for output in fields["outputs"])
        offset = 0
        for part in layout:
            if part.offset != offset:
                raise ValueError(f"state part {part.name} starts at {part.offset}, not at {offset}")
            offset += part.size
        return cls(**{**fields, **columns, "outputs": outputs, "state": layout})


def layout_of(parts: Sequence[tuple[str, int]]) -> tuple[StatePart, ...]:
    """Places named sizes one after the other."""
    placed: list[StatePart] = []
    offset = 0
    for name, size in parts:
        placed.append(StatePart(name, offset, size))
        offset += size
    return tuple(placed)
