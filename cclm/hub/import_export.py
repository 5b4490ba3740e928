"""`cclm import FOLDER`: an exported folder becomes one of this version: the same weights bit for bit, checked again.

What changes is the code that the folder carries, and config.json in this version's form. A folder whose config or
weights this version does not know is refused: it stays usable with its own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cclm.engine.stored_weights import StoredTensor
from cclm.errors import CheckpointError
from cclm.hub.export import ExportOptions, check_target, export, reference_for
from cclm.hub.open import prepare_export
from cclm.hub.parity import ParityReport
from cclm.hub.weight_files import DTYPES, Dtype, Source, in_memory
from cclm.pretrained.source_files import read_folder


def import_export(folder: Path, to: Path) -> ParityReport:
    """Write `folder` anew to `to`.

    Args:
        folder: an export or import of ours, with its tokenizer.
        to: the folder to make; an older export or import there is replaced, anything else is refused.

    Raises:
        CheckpointError: `folder` is of another version or incomplete, or a fresh process computes something else than
            its weights do.
    """
    check_target(to)  # before anything long
    prepared, source = prepare_export(folder), folder_source(folder)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    note = "\n\nWritten anew by `cclm import` with the same weights; the newest check is in `parity.json`.\n"
    return export(
        prepared,
        to,
        source=source,
        reference=lambda scratch: reference_for(prepared, source, scratch),
        card=lambda _: text.rstrip("\n").removesuffix(note.strip()).rstrip("\n") + note,
        options=ExportOptions(dtype=stored_dtype(source())),
    )


def folder_source(folder: Path) -> Source:
    """Return the weights of a folder, opened anew at each call.

    Raises:
        CheckpointError: there are none, or a file that the index names is missing.
    """
    read_folder(folder)  # tells at once
    return lambda: in_memory(read_folder(folder))()


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
