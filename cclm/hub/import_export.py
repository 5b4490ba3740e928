"""`cclm import FOLDER`: an exported folder becomes one of this version: the same weights bit for bit, proven again.

What changes is the code that the folder carries, and config.json in this version's form. A folder whose config or
weights this version does not know is refused: it stays usable with its own code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open

from cclm.engine.stored_weights import StoredTensor
from cclm.errors import CheckpointError
from cclm.hub.export import ExportOptions, export, refuse_to_overwrite, witness_for
from cclm.hub.open import prepare_export
from cclm.hub.parity import ParityReport
from cclm.hub.weight_files import DTYPES, INDEX_NAME, Dtype, Source


def import_export(folder: Path, to: Path) -> ParityReport:
    """Write `folder` anew to `to`.

    Args:
        folder: an export or import of ours, with its tokenizer.
        to: the folder to make; an older export or import there is replaced, anything else is refused.

    Raises:
        CheckpointError: `folder` is of another version or incomplete, or a fresh process computes something else than
            its weights do.
    """
    refuse_to_overwrite(to)  # before anything long
    prepared, source = prepare_export(folder), folder_source(folder)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    note = "\n\nWritten anew by `cclm import` with the same weights; the newest proof is in `parity.json`.\n"
    return export(
        prepared,
        to,
        source=source,
        witness=lambda scratch: witness_for(prepared, source, scratch),
        card=lambda _: text.rstrip("\n").removesuffix(note.strip()).rstrip("\n") + note,
        options=ExportOptions(dtype=stored_dtype(source())),
    )


def folder_source(folder: Path) -> Source:
    """The weights of a folder's safetensors files.

    Raises:
        CheckpointError: there is none, or one that the index names is missing.
    """
    index = folder / INDEX_NAME
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if missing := sorted(name for name in names if not (folder / name).is_file()):
        raise CheckpointError(
            where=str(folder), expected="files of weights", got=f"no {missing[0]}", do="Copy the whole folder again."
        )

    def source() -> Mapping[str, StoredTensor]:
        found = {}
        for name in sorted(names):
            with safe_open(folder / name, "pt") as file:
                for key in file.keys():  # noqa: SIM118  # not a dict
                    value = file.get_tensor(key)
                    found[key] = StoredTensor(shape=tuple(value.shape), dtype=value.dtype, parts=(value.reshape(-1),))
        return found

    return source


def stored_dtype(stored: Mapping[str, StoredTensor]) -> Dtype:
    """The one dtype of the floating-point weights.

    Raises:
        CheckpointError: there are several.
    """
    found = {str(value.dtype).removeprefix("torch.") for value in stored.values() if value.dtype.is_floating_point}
    if len(found) != 1 or not found <= set(DTYPES):
        raise CheckpointError(
            where="weights", expected="one of float32, bfloat16 and float16", got=", ".join(sorted(found)),
            do="Export it again.",
        )  # fmt: skip
    return DTYPES[found.pop()]
