"""How a rank ends when something went wrong: said in a sentence, noted in the run folder, told by the exit code."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from cclm.errors import Cause, CclmError
from cclm.run.causes import EXIT_CODES, cause_of
from cclm.run.status import note_end

GOES_ON = "the same command goes on from the newest complete checkpoint"
CPU_ALLOCATOR = "DefaultCPUAllocator"
"""How torch tells that memory is out, where it has no class for it."""


def end_with(error: BaseException, run_folder: Path | None, rank: int) -> int:
    """Say why this rank ends, note it in the run folder if there is one, and return the exit code."""
    cause, sentence = explain(error, run_folder)
    if cause is Cause.EXIT or (cause is Cause.TRANSIENT and not isinstance(error, CclmError)):
        traceback.print_exception(error)
    sys.stderr.write(f"error: {sentence}\n")
    if run_folder is not None and run_folder.is_dir():
        note_end(run_folder, rank, cause, sentence)
    return EXIT_CODES[cause]


def explain(error: BaseException, run_folder: Path | None) -> tuple[Cause, str]:
    """Return the cause, and the sentence for the user: what was expected, what came, what to do."""
    if isinstance(error, CclmError):
        return cause_of(error), str(error)
    if is_out_of_memory(error):
        told = CclmError(
            expected="memory for the next step",
            got=_first_line(error),
            do="Raise data.micro_batches (it computes a step in parts), lower the batch size or data.num_workers, "
            f"use more ranks, or ask for more memory; {GOES_ON}.",
        )
        return Cause.USER_ERROR, str(told)
    cause = cause_of(error)
    place = str(getattr(error, "filename", None) or run_folder or "")
    if cause is Cause.DISK_FULL:
        told = CclmError(
            where=place,
            expected="room for what the run writes",
            got=getattr(error, "strerror", None) or _first_line(error),
            do=f"Free space, or raise the quota; {GOES_ON}.",
        )
    elif cause is Cause.TRANSIENT:
        told = CclmError(
            where=place if isinstance(error, OSError) else "",
            expected="disks, networks and other ranks that answer",
            got=f"{type(error).__name__}: {_first_line(error)}",
            do=f"Such faults pass, and another rank may have said more; {GOES_ON}.",
        )
    else:
        return cause, f"{type(error).__name__}: {_first_line(error)}"
    return cause, str(told)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether this is what Python or torch raise when they get no memory."""
    names = {kind.__name__ for kind in type(error).__mro__}
    is_torchs = "OutOfMemoryError" in names or (isinstance(error, RuntimeError) and CPU_ALLOCATOR in str(error))
    return is_torchs or isinstance(error, MemoryError)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
