"""Weights of a source, wherever they lie: one file, a Hugging Face folder, or a model by name. Nothing is read yet.

Files are mapped into memory: a tensor's bytes are read when it is used, and the system may drop them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from cclm.errors import CheckpointError
from cclm.pretrained.published_file import read_tensors

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""What a Hugging Face folder's weights are called; `NAME.index.json` lists several files."""
INDEX = ".index.json"
PATTERNS = ["*.json", "model*.safetensors"]
"""What is fetched of a model that is named."""
OLD_PATTERNS = ["*.json", "pytorch_model*.bin"]
"""The same, where that brings no weights: models that were never converted."""


def open_source(source: str | Path) -> Mapping[str, Tensor]:
    """Names and tensors of a file, of a folder with weights, or of a model on the Hugging Face hub.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(source)
    if path.is_file():
        return read_tensors(path)
    return read_folder(path if path.is_dir() else _fetch(str(source)))


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face folder, whatever number of files they are in.

    Raises:
        CheckpointError: a folder without weights.
    """
    for name in WEIGHT_FILES:
        index = folder / f"{name}{INDEX}"
        if index.is_file():
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            parts = [read_tensors(folder / file) for file in sorted(set(places.values()))]
            return {key: value for part in parts for key, value in part.items()}
        if (folder / name).is_file():
            return read_tensors(folder / name)
    raise CheckpointError(
        where=str(folder),
        expected=" or ".join(WEIGHT_FILES),
        got="a folder without them",
        do="Give a weights file, or the folder of a Hugging Face model.",
    )


def _fetch(name: str) -> Path:
    """The folder of a model on the hub, from the local cache or over the network."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=PATTERNS))
        newest = WEIGHT_FILES[0]
        if not any((folder / file).is_file() for file in (newest, newest + INDEX)):
            folder = Path(snapshot_download(name, allow_patterns=OLD_PATTERNS))
        return folder
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            where=name,
            expected="a file, a folder, or the name of a model on the Hugging Face hub",
            got=" ".join(str(error).split())[:200],
            do="Check the path or the name; without network give a folder.",
        ) from error
