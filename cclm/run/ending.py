"""How a program ends when something went wrong: with a sentence, a note in the run folder (of a rank), and a code.

Memory that runs out before the first step is done is looked for: the kernel would kill this rank, or one of its
workers, or a process of somebody else, without a word. Until then nothing is lost by ending first; later the kernel
decides, which knows more.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cclm.errors import Cause, CclmError
from cclm.run.causes import EXIT_CODES, cause_of
from cclm.run.machine import available_memory_bytes, process_memory_bytes
from cclm.run.status import note_end

GOES_ON = "the same command goes on from the newest complete checkpoint."
USERS_ERRNOS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG}
    | {errno.EMFILE, errno.ENFILE}
)
"""What is wrong with a path, its permissions, or a limit (`ulimit`)."""
CPU_ALLOCATOR = "DefaultCPUAllocator"
"""How torch tells that memory is out, where it has no class for it."""
LOOK_S = 0.05
"""Memory grows by gigabytes a second when a step is too large."""
SHARE, LEAST, MOST = 0.03, 1 << 28, 1 << 32
"""What must be left: a share of what there was, at least and at most so many bytes. With less the kernel is about to
kill, and everything is slow."""


def end_with(error: BaseException, run_folder: Path | None = None, rank: int = 0) -> int:
    """Say why this process ends, note it in the run folder if it is a rank's, and return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
        return 128 + signal.SIGINT
    cause, sentence = explain(error, run_folder)
    if cause is Cause.EXIT or (cause is Cause.TRANSIENT and not isinstance(error, CclmError)):
        traceback.print_exception(error)
    sys.stderr.write(f"error: {sentence}\n")
    if run_folder is not None and run_folder.is_dir():
        note_end(run_folder, rank, cause, sentence)
    return EXIT_CODES[cause]


def explain(error: BaseException, run_folder: Path | None = None) -> tuple[Cause, str]:
    """Return the cause, and the sentence for the user. `run_folder`: of the run that ends, if it is one."""
    if isinstance(error, CclmError):
        return cause_of(error), str(error)
    cause, goes_on = cause_of(error), "" if run_folder is None else GOES_ON
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    got = f"{type(error).__name__}: {first_line}"
    place = str(getattr(error, "filename", None) or run_folder or "")
    if is_out_of_memory(error):
        cause, expected = Cause.USER_ERROR, "enough memory"
        do = (
            "Lower --batch-size, or use a machine with more memory."
            if run_folder is None
            else "Raise data.micro_batches (a step is then computed in parts), lower data.num_workers, use more ranks, "
            f"or ask for more memory; {goes_on}"
        )
    elif cause is Cause.DISK_FULL:
        expected = "room for what is written"
        do = f"Free space, or raise the quota or `ulimit -f`; {goes_on or 'then try again.'}"
    elif cause is Cause.TRANSIENT:
        expected, do = "disks, networks and other ranks that answer", f"Such faults pass; {goes_on or 'try again.'}"
    elif isinstance(error, OSError) and _is_of_the_user(error, run_folder):
        cause, expected = Cause.USER_ERROR, "a file or folder that can be used"
        do = "Mend it, or choose another place."
    else:
        return cause, got
    return cause, str(CclmError(where=place, expected=expected, got=got, do=do))


def _is_of_the_user(error: OSError, run_folder: Path | None) -> bool:
    """Whether a path, a permission or a limit is wrong; a file of ours that is missing is our mistake."""
    if error.errno == errno.ENOENT:
        return run_folder is not None and str(error.filename).startswith(str(run_folder))
    return error.errno in USERS_ERRNOS


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether this is what Python or torch raise when they get no memory."""
    names = {kind.__name__ for kind in type(error).__mro__}
    is_torchs = "OutOfMemoryError" in names or (isinstance(error, RuntimeError) and CPU_ALLOCATOR in str(error))
    return is_torchs or isinstance(error, MemoryError)


class MemoryGuard:
    """Looks at the machine's memory until the first step is done."""

    def __init__(
        self, run_folder: Path, rank: int, advice: str, *, look: Callable[[], int] = available_memory_bytes,
        tell: Callable[[Cause, str], object] = lambda cause, reason: None,
    ) -> None:  # fmt: skip
        """`tell` is called once this rank has said why it ends."""
        self._run_folder, self._rank, self._advice, self._look, self._tell = run_folder, rank, advice, look, tell
        self._passed = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[MemoryGuard]:
        """Look until `passed`, or to the end of the `with` block."""
        before = self._look()
        least = min(MOST, max(LEAST, int(SHARE * before)))
        if before > least:
            threading.Thread(target=self._watch, args=(least,), name="memory", daemon=True).start()
        try:
            yield self
        finally:
            self.passed()

    def passed(self) -> None:
        """Say that a step is done: memory sufficed."""
        self._passed.set()

    def _watch(self, least: int) -> None:
        while not self._passed.wait(LOOK_S):
            if (left := self._look()) < least:
                error = self._error(left)
                code = end_with(error, self._run_folder, self._rank)  # first: there may be no time for more
                self._tell(Cause.USER_ERROR, str(error))
                os._exit(code)

    def _error(self, left: int) -> CclmError:
        own = process_memory_bytes()[0]
        workers = sum(process_memory_bytes(pid)[0] for pid in children_of(os.getpid()))
        return CclmError(
            where="before the first step was done",
            expected="enough memory",
            got=f"{left / 1e9:.1f} GB left; this rank holds {own / 1e9:.1f} GB, its workers {workers / 1e9:.1f} GB",
            do=self._advice,
            cause=Cause.USER_ERROR,
        )


def children_of(pid: int) -> list[int]:
    """Return the processes that a process of this machine has started and that live."""
    try:
        texts = [path.read_text(encoding="ascii") for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for text in texts for child in text.split()]
