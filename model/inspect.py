"""Owns the `inspect` command: an artifact in, its manifest as text for a reader out.

Knows nothing of the network inside.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.artifact import load_artifact
from model.manifest import Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("--artifact", type=Path, required=True, metavar="FILE", help="the artifact, model.pt")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON, as it is stored")


def run(options: argparse.Namespace) -> str:
    """Returns the manifest as lines of text or as JSON."""
    manifest = load_artifact(options.artifact).manifest
    return manifest.to_json() if options.json else describe(manifest)


def describe(manifest: Manifest) -> str:
    """Formats the manifest as lines of text."""
    interval = (
        f"every {manifest.step_interval_seconds:g} s"
        if manifest.step_interval_seconds
        else "no fixed interval"
    )
    lines = [
        f"{manifest.name}, version {manifest.version}",
        f"  {manifest.description}",
        f"  training data: {manifest.attribution or 'not stated'}",
        f"steps: {interval}, {'uses' if manifest.uses_time else 'does not use'} time",
        "inputs:",
        *(f"  {column.name} {_unit(column.unit)}" for column in manifest.inputs),
        "outputs:",
        *(
            f"  {output.name} {_unit(output.unit)}: {output.role} of {output.target},"
            f" {output.horizon_steps} step{'s' * (output.horizon_steps != 1)} ahead"
            for output in manifest.outputs
        ),
        "future inputs: " + (", ".join(column.name for column in manifest.future) or "none"),
        f"state: {manifest.state_size} floats",
        *(f"  {part.offset:>6}  {part.name} ({part.size})" for part in manifest.state),
        "training:",
        *_indented(manifest.training, "  "),
    ]
    return "\n".join(lines)


def _unit(unit: str) -> str:
    return f"[{unit}]" if unit else "[no unit]"


def _indented(fields: Mapping[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for key, value in fields.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}:", *_indented(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value}")
    return lines
