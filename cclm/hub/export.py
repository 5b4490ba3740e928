"""Write a trained model as a Hugging Face folder that carries its own code, and check that it works.

.export-NAME/NAME/   weights (safetensors), config.json + modelling code, tokenizer, processors, README.md
     │ a fresh process that cannot import this library loads it and computes (parity.json), or nothing happens
     ▼
NAME/                renamed into place, an older export of that name goes

The staging directory is locked by its export; what a killed one left in it goes when the next one starts. Weights pass
through memory piece by piece, from the files of the ranks to those of the export; no process holds the model but the
fresh one.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file

from cclm.engine.stored_weights import StoredTensor, stored_average, stored_weights
from cclm.errors import CheckpointError
from cclm.files.atomic import make_folder, sync
from cclm.files.lock import locked_folder
from cclm.hub.hub_folder import write_folder
from cclm.hub.mapped_pages import drop_pages_after_use
from cclm.hub.open import Prepared, is_export, with_weights
from cclm.hub.parity import ParityReport, check_parity
from cclm.hub.reference_outputs import ReferenceOutputs, read_reference, reference_of
from cclm.hub.weight_files import Dtype, Source, write_weights
from cclm.ops.heap import return_freed_memory
from cclm.pretrained.source_files import of_network
from cclm.report.facts import PARITY_NAME
from cclm.run.checkpoints import verify

SHARD_BYTES = 5 * 10**9
REPLACED = "replaced"
"""Name of an older export inside the staging directory, between two renames."""
Weights = Literal["last", "ema"]
"""The weights after the last update, or their moving average (`optimizer.ema_decay`)."""


def checkpoint_source(checkpoint: Path, weights: Weights = "last") -> Source:
    """The weights of a checkpoint by the network's names, opened anew at each call; every byte is verified once, now
    (CheckpointError: not complete, damaged, or without averages when these are asked for).
    """
    verify(checkpoint)
    if weights == "ema":
        stored_average(checkpoint)  # tells at once if there is none

    def source() -> Mapping[str, StoredTensor]:
        stored = stored_weights(checkpoint)
        if weights == "ema":  # buffers and frozen parameters have no average
            stored.update(stored_average(checkpoint))
        return of_network(stored)

    return source


def reference_for(prepared: Prepared, source: Source, room: Path, weights: Weights = "last") -> ReferenceOutputs:
    """Return what the training engine computed; without it, and for averages, what the model computes in this process.

    `room`: a folder where there is room for the weights; they go again.
    """
    recorded = read_reference(prepared.origin) if weights == "last" else None
    if recorded is not None:
        return recorded
    tied = prepared.config.options().tied_weights
    names = [name for name in source() if name not in tied]
    # Through a file: what is mapped can leave memory again, which copies put together from the ranks' shares cannot.
    with tempfile.TemporaryDirectory(dir=room) as scratch:
        (file,) = write_weights(source, Path(scratch), names=names, dtype=None, shard_bytes=sys.maxsize)
        opened = with_weights(prepared, load_file(Path(scratch, file)))
        drop_pages_after_use(opened.model)
        found = reference_of(opened)
        del opened
    return_freed_memory()  # it would stand beside the fresh process's
    return found if weights == "last" else replace(found, origin=f"averaged weights (EMA) in {found.origin}")


def export(
    prepared: Prepared,
    to: Path,
    *,
    source: Source,
    papers: Callable[[ParityReport], Mapping[str, str]],
    weights: Weights = "last",
    dtype: Dtype = "float32",
    shard_bytes: int = SHARD_BYTES,
    tolerance: float | None = None,
    finish: Callable[[Path, ReferenceOutputs], None] = lambda folder, reference: None,
) -> ParityReport:
    """Write a model to the folder `to` and return the parity report, which also goes to `to`/parity.json.

    An export that is already there is replaced, anything else is refused. `papers` makes the texts of README.md and of
    other files, by name; `tolerance`: largest difference, as a share of the largest value, None: by dtype; `finish`
    adds to the folder before it is put in its place, and what it raises fails the export.

    Raises:
        CheckpointError: `to` is something else, or another export to it is running, or weights are missing, or a fresh
            process computes something else. `to` is then untouched.
    """
    check_target(to)
    with staging_directory(to) as folder:
        reference = reference_for(prepared, source, folder.parent, weights)
        write_folder(prepared, folder, source, dtype=dtype, shard_bytes=shard_bytes)
        report = check_parity(prepared, folder, reference=reference, dtype=dtype, tolerance=tolerance)
        for name, text in {PARITY_NAME: report.as_json(), **papers(report)}.items():
            (folder / name).write_text(text, encoding="utf-8")
        finish(folder, reference)
    return report


@contextmanager
def staging_directory(to: Path) -> Iterator[Path]:
    """Give the path of a folder to make, in a hidden one beside `to`; without an error it then becomes `to`, durably.

    The hidden folder is locked while it is used and gone afterwards. The lock ends with its process, however that
    ends; so whatever lies there unlocked was left by a dead export.

    Raises:
        CheckpointError: another export to the same folder is running.
        CclmError: nothing can be written beside `to`.
    """
    to = to.resolve()  # `.` and `..` have no name to put a hidden folder beside
    hidden = make_folder(to.parent) / f".export-{to.name}"
    hidden.mkdir(exist_ok=True)
    busy = CheckpointError(
        where=str(to),
        expected="one export at a time",
        got="another one that is running",
        do="Wait for it, or give another `--to`.",
    )
    with locked_folder(hidden, busy):
        if (hidden / REPLACED).exists() and not to.exists():  # killed between the two renames
            (hidden / REPLACED).rename(to)
        for leftover in hidden.iterdir():
            shutil.rmtree(leftover)
        try:
            folder = hidden / to.name
            yield folder
            for path in (*folder.iterdir(), folder):
                sync(path)
            if to.exists():
                to.rename(hidden / REPLACED)
            folder.rename(to)
            sync(to.parent)
        finally:
            shutil.rmtree(hidden)


def check_target(to: Path) -> None:
    """Raise unless an export can be put there, before anything long is done.

    Raises:
        CheckpointError: it is anything but an export, an empty folder, or nothing; or this process runs in it.
        CclmError: nothing can be written beside it.
    """
    got = ""
    if to.exists() and not is_export(to) and not (to.is_dir() and not any(to.iterdir())):
        got = "a folder or file with other contents"
    elif to.exists() and Path.cwd().is_relative_to(to.resolve()):
        got = "the folder that this command runs in"
    if got:
        raise CheckpointError(
            where=str(to),
            expected="a new folder or an older export",
            got=got,
            do="Give another `--to`, or move it away.",
        )
    make_folder(to.resolve().parent)
