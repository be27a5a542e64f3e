"""Owns the manifest: what an artifact says of itself, as JSON, written, read and checked.

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
    """Names one input and its unit; an empty unit is none."""

    name: str
    unit: str


@dataclass(frozen=True, kw_only=True)
class Output:
    """Names one output, the input that it predicts, and the kind of the prediction."""

    name: str
    target: str
    """The name of the input."""
    role: str
    """`mean`, `median`, `quantile`, `score` or `metric`."""
    quantile: float | None
    """Between 0 and 1 where the role is `quantile`."""
    unit: str
    horizon_steps: int
    """How many steps after the last input the predicted value comes."""


@dataclass(frozen=True)
class StatePart:
    """Places one named part of the state row: `size` floats from `offset` on."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Describes an artifact completely, for the server and for readers."""

    name: str
    version: str
    description: str
    attribution: str
    """Where the training data came from, and their licence."""
    inputs: tuple[Column, ...]
    outputs: tuple[Output, ...]
    state: tuple[StatePart, ...]
    uses_time: bool
    step_interval_seconds: float
    """0 where there is no fixed interval."""
    future: tuple[Column, ...] = ()
    """Inputs of `forecast` that are known in advance."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How the weights were made, and the figures; for readers, not for the server."""

    @property
    def state_size(self) -> int:
        """The number of floats in a state row."""
        return sum(part.size for part in self.state)

    def to_json(self) -> str:
        """Returns the manifest as the JSON text in the artifact."""
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
                f"format_version {version!r} is not {FORMAT_VERSION}, the only one that can be read"
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


def next_mean_of(column: Column) -> Output:
    """Returns the output that predicts the mean of an input one step ahead, under the input's name."""
    return Output(
        name=column.name,
        target=column.name,
        role="mean",
        quantile=None,
        unit=column.unit,
        horizon_steps=1,
    )


def layout_of(parts: Sequence[tuple[str, int]]) -> tuple[StatePart, ...]:
    """Places the parts, each a name and a size, one after the other."""
    placed: list[StatePart] = []
    offset = 0
    for name, size in parts:
        placed.append(StatePart(name, offset, size))
        offset += size
    return tuple(placed)
