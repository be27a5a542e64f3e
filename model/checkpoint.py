"""Owns the checkpoint's file: what a training needs to continue, written whole, read back and checked.

Knows nothing of what the fields mean: `early_stopping` writes them, `export` reads them.
"""

import io
from pathlib import Path
from typing import Any

import torch

from model.errors import ArtifactError
from model.files import write_atomically

FORMAT_VERSION = 1


def save_checkpoint(path: Path, fields: dict[str, Any]) -> None:
    """Writes the fields (tensors and plain values) with the format's version, whole or not at all."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT_VERSION, **fields}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint's fields; ArtifactError names the file and what is wrong with it."""
    if not path.is_file():
        raise ArtifactError(f"{path}: no such checkpoint")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in whatever way its bytes lead to
        raise ArtifactError(f"{path}: not a checkpoint, or damaged") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT_VERSION:
        raise ArtifactError(f"{path}: not a checkpoint of format {FORMAT_VERSION}")
    return saved
