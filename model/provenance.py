"""Owns what a manifest says of a model and of the training that made its weights.

Knows nothing of how to train, or of files.
"""

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from model.datasets import Series
from model.manifest import Column, Manifest, layout_of, next_mean_of
from model.network import Architecture, state_layout


def about_of(
    options: argparse.Namespace, series: Series, source: Mapping[str, Any], *, name: str
) -> dict[str, Any]:
    """Collects what the manifest says of the model and its series, as plain values for the checkpoint."""
    units = (options.units.split(",") if options.units else []) + [""] * len(series.names)  # none: no unit
    description = options.description or f"Forecasts {', '.join(series.names)} of {source['name']}."
    return {
        "name": name,
        "version": options.model_version,
        "description": description,
        "attribution": options.attribution,
        "columns": [[column, unit.strip()] for column, unit in zip(series.names, units, strict=False)],
        "command": recorded_command(options.arguments),
    }


def recorded_command(arguments: list[str]) -> str:
    """Returns the command for any machine: absolute paths lose their folders, flags of one run go."""
    lasting = [argument for argument in arguments if argument not in ("--resume", "--quiet")]
    return shlex.join(["python", "-m", "model", *(_without_folders(argument) for argument in lasting)])


def _without_folders(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    return option + equals + Path(value).name if value.startswith("/") else argument


def manifest_of(plan: dict[str, Any], about: dict[str, Any], training: dict[str, Any]) -> Manifest:
    """Makes the manifest from a checkpoint's plan and about; `training` adds what came of the training."""
    architecture = Architecture(**plan["architecture"])
    inputs = tuple(Column(name, unit) for name, unit in about["columns"])
    split = {
        "rows": plan["source"]["rows"],
        "validation_rows": plan["num_validation"],
        "refit": plan["refit"],
    }
    return Manifest(
        name=about["name"],
        version=about["version"],
        description=about["description"],
        attribution=about["attribution"],
        inputs=inputs,
        outputs=tuple(next_mean_of(column) for column in inputs),
        state=layout_of(state_layout(architecture)),
        uses_time=architecture.uses_time,
        step_interval_seconds=architecture.interval_ns / 1e9,
        training={
            "command": about["command"],
            "data": plan["source"],
            "split": split,
            "seed": plan["recipe"]["seed"],
            "torch": torch.__version__,
            "architecture": plan["architecture"],
            "recipe": plan["recipe"],
            **training,
        },
    )
