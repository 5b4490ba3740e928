"""Weights of a source, wherever they lie: one file, a Hugging Face folder or model by name, a run. Nothing is read yet.

Files are mapped into memory: a tensor's bytes are read when it is used, and the system may drop them again. Nothing
that stands in a file is run.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cclm.engine.stored_weights import load_full_state
from cclm.errors import CheckpointError
from cclm.run.checkpoints import MARKER, newest_complete, pinned

ValueType = TypeVar("ValueType")
CONTAINERS = ("model", "state_dict", "model_state_dict", "module")
"""Keys under which a saved dict may hold the weights."""
TRAINING_PREFIX = "model."
"""What stands before the network's names in the training module's."""
TRAINING_ONLY = "teacher_maps."
"""What stands before the training module's names of what learns with the network and is no part of it."""
WRAPPER = "module."
"""What data-parallel training puts before every name."""
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""What a Hugging Face folder's weights are called; `NAME.index.json` lists several files."""
INDEX = ".index.json"
PATTERNS = ["*.json", "model*.safetensors"]
"""What is fetched of a model that is named."""
OLD_PATTERNS = ["*.json", "pytorch_model*.bin"]
"""The same, where that brings no weights: models that were never converted."""


def open_source(source: str | Path) -> Mapping[str, Tensor]:
    """Names and tensors of a file, of a folder with weights, of a run or a checkpoint of ours, or of a model on the
    Hugging Face hub.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(source)
    if path.is_file():
        return read_tensors(path)
    checkpoint = path if (path / MARKER).is_file() else pinned(path) or newest_complete(path)
    if checkpoint is not None:
        return of_network(load_full_state(checkpoint))
    return read_folder(path if path.is_dir() else _fetch(str(source)))


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face folder, whatever number of files they are in (CheckpointError: a folder without
    weights).
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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a `.th`, `.pth`, `.pt`, `.bin` or `.safetensors` file, on the CPU.

    The file may hold the state dict itself or a dict with the state dict under one of `CONTAINERS`; a `module.` before
    every name is taken off. Tensors of torch's zip format are memory-mapped, so that what is not used is not read.

    Raises:
        CheckpointError: no such file, no weights in it, or something that only arbitrary code could load.
    """
    if not path.is_file():
        raise _error(path, "nothing at this path", "Give the path of the file.")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise _error(
            path,
            " ".join(str(error).split())[:200],
            "Download it again; if it needs other classes to load, save its state dict alone with torch.save.",
        ) from error
    if state := unwrap(content):
        return state
    raise _error(path, f"a {type(content).__name__} without tensors", "Is it a training state? Give the model file.")


def unwrap(content: Any) -> dict[str, Tensor]:
    """The state dict inside what a file holds; empty if there is none."""
    if not isinstance(content, Mapping):
        return {}
    for key in CONTAINERS:
        if isinstance(content.get(key), Mapping):
            return unwrap(content[key])
    return without_prefix({name: value for name, value in content.items() if isinstance(value, Tensor)}, WRAPPER)


def without_prefix(state: Mapping[str, ValueType], prefix: str) -> dict[str, ValueType]:
    """The same values by names without `prefix`, if all names begin with it."""
    if all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def of_network(state: Mapping[str, ValueType]) -> dict[str, ValueType]:
    """The network's values in those of a training module, by the network's own names."""
    own = {name: one for name, one in state.items() if not name.startswith(TRAINING_ONLY)}
    return without_prefix(own, TRAINING_PREFIX)


def _error(path: Path, got: str, do: str) -> CheckpointError:
    return CheckpointError(where=str(path), expected="a file of weights (torch.save or safetensors)", got=got, do=do)


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
