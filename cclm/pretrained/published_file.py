"""Read the tensors of a weights file without running anything that stands in it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cclm.errors import CheckpointError

CONTAINERS = ("model", "state_dict", "model_state_dict", "module")
"""Keys under which a saved dict may hold the weights."""
WRAPPER = "module."
"""What data-parallel training puts before every name."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a `.th`, `.pth`, `.pt`, `.bin` or `.safetensors` file, on the CPU.

    The file may hold the state dict itself or a dict with the state dict under one of `CONTAINERS`; a `module.` before
    every name is taken off. Tensors of torch's zip format are memory-mapped, so that what is not used is not read.

    Raises:
        CheckpointError: no such file, no weights in it, or something that only arbitrary code could load.
    """
    if not path.is_file():
        raise _error(path, "nothing at this path", "Give the path of the file.")
    content = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    state = unwrap(content)
    if not state:
        raise _error(
            path, f"a {type(content).__name__} without tensors", "Is it a training state? Give the model file."
        )
    return state


def unwrap(content: Any) -> dict[str, Tensor]:
    """The state dict inside what a file holds; empty if there is none."""
    if isinstance(content, Mapping):
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is not None:
            return unwrap(inner)
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors and all(name.startswith(WRAPPER) for name in tensors):
        tensors = {name.removeprefix(WRAPPER): value for name, value in tensors.items()}
    return tensors


def _unpickle(path: Path) -> Any:
    """torch.load, weights only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise _error(
            path,
            " ".join(str(error).split())[:200],
            "Download it again; if it needs other classes to load, save its state dict alone with torch.save.",
        ) from error


def _error(path: Path, got: str, do: str) -> CheckpointError:
    return CheckpointError(where=str(path), expected="a file of weights (torch.save or safetensors)", got=got, do=do)
