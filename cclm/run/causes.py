"""Why a process ended, as a field: the table of causes and exit codes, and the one place that classifies exceptions.

    exception ── cause_of ──► Cause ── EXIT_CODES ──► exit code ── cause_of_code ──► Cause (for who saw only the code)

Whoever decides what comes next (`launch`, a scheduler's script, a colleague) reads the cause, or the code, and never
the words of a message. docs/runbook.md shows the same table. No torch: exceptions of other libraries are known by the
names of their classes and by their fields.
"""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from cclm.errors import Cause, CclmError

__all__ = ["EXIT_CODES", "GOOD_ENDS", "MENDED_BY_USER", "Cause", "cause_of", "cause_of_code", "consequence"]

EXIT_CODES: dict[Cause, int] = {
    Cause.DONE: 0,
    Cause.EXIT: 1,
    Cause.USER_ERROR: 2,
    Cause.FOLDER_LOCKED: 69,
    Cause.DIVERGED: 70,
    Cause.DISK_FULL: 73,
    Cause.TRANSIENT: 74,
    Cause.STOPPED: 75,
    Cause.STOPPED_BY_USER: 75,
    Cause.NOT_STARTED: 127,
    Cause.HUNG: 76,
    Cause.WAITING: 76,
    Cause.ENDED: 128 + signal.SIGTERM,
}
"""What a process with this cause ends with (69 to 76 are sysexits.h's); SIGNAL is 128 + the signal's number. A hung
process that another one had to kill has that signal's."""

GOOD_ENDS = frozenset({Cause.DONE, Cause.STOPPED, Cause.STOPPED_BY_USER})
"""Causes of ranks that have not failed."""
MENDED_BY_USER = frozenset({Cause.USER_ERROR, Cause.DIVERGED, Cause.DISK_FULL})
"""Another attempt would end in the same way: the job ends at once, with a reason."""

CONSEQUENCES = (Cause.TRANSIENT, Cause.ENDED, Cause.WAITING)
"""Causes of ranks that probably ended because of another: the later, the more probably."""

DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Also the limit of one file's size (`ulimit -f`, or what a file system can hold)."""
TRANSIENT_ERRNOS = frozenset(
    {errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENOLINK, errno.ECOMM, errno.EPROTO, errno.EAGAIN, errno.EBUSY}
    | {errno.ETIMEDOUT, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.EHOSTUNREACH, errno.EHOSTDOWN}
    | {errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENOTCONN, errno.ESHUTDOWN, errno.EPIPE}
    | {errno.ENOBUFS, errno.EINTR, errno.ENONET, errno.ENOLCK}
)
"""Faults of disks, networks and file servers that pass. A missing file or permission is not one of them."""
TRANSIENT_STATUSES = frozenset({408, 425, 429})
"""HTTP statuses that mean "later", besides 5xx."""
TRANSIENT_CLASSES = frozenset(
    {"builtins.ConnectionError", "builtins.TimeoutError", "asyncio.exceptions.TimeoutError"}
    | {"concurrent.futures._base.TimeoutError", "socket.gaierror", "ssl.SSLError"}
    | {"http.client.IncompleteRead", "http.client.BadStatusLine", "urllib.error.ContentTooShortError"}
    | {"aiohttp.client_exceptions.ClientConnectionError", "aiohttp.client_exceptions.ClientPayloadError"}
    | {"botocore.exceptions.HTTPClientError", "botocore.exceptions.ConnectionError"}
    | {"botocore.exceptions.IncompleteReadError", "urllib3.exceptions.ProtocolError"}
    | {"urllib3.exceptions.TimeoutError", "urllib3.exceptions.MaxRetryError"}
    | {"requests.exceptions.ConnectionError", "requests.exceptions.Timeout", "google.api_core.exceptions.RetryError"}
    | {"torch.distributed.DistError"}
)
"""Classes, with their subclasses, that mean a lost connection, whatever their fields say."""
LASTING_CLASSES = frozenset({"ssl.SSLCertVerificationError"})
"""Subclasses of those that no second try mends."""
COMMUNICATION_CODE = (
    *("/torch/distributed/", "/deepspeed/comm/", "/cclm/distributed/"),
    *("/deepspeed/utils/nvtx.py", "/deepspeed/runtime/zero/partition_parameters.py"),
)
"""gloo tells of a lost neighbour by a plain RuntimeError: it is known by the place where it was raised. The last two
wait for parameters that ZeRO-3 gathers ahead; the first of them wraps such waits."""

WAITS_S = (0.5, 2.0, 8.0)
"""Before the second, third and fourth try: a restarted file server is back within seconds; a lost one takes the next
attempt of the job, which costs less than ranks that wait here."""
ResultType = TypeVar("ResultType")


def cause_of(error: BaseException) -> Cause:
    """Return why a process that ends with this exception ends. An error's own `cause` field comes first, then what it
    was raised from, if that is a full disk or a passing fault: a shard that cannot be read because the disk answers EIO
    is no user's error."""
    for item in _chain(error):
        if isinstance(item, CclmError) and item.cause is not None:
            return item.cause
        if (found := _cause_of_fault(item)) is not None:
            return found
    if isinstance(error, CclmError):
        return Cause.USER_ERROR
    if isinstance(error, SystemExit):
        return cause_of_code(error.code if isinstance(error.code, int) else int(error.code is not None))
    return Cause.SIGNAL if isinstance(error, KeyboardInterrupt) else Cause.EXIT


def cause_of_code(code: int) -> Cause:
    """Return what an exit code says: 128 + N, or -N as `subprocess` has it, is signal N."""
    code = 128 - code if code < 0 else code
    named = {EXIT_CODES[cause]: cause for cause in reversed(EXIT_CODES)}
    if code == 126:  # a shell's word for a file that it may not execute
        return Cause.NOT_STARTED
    return named.get(code, Cause.SIGNAL if code > 128 else Cause.EXIT)


def consequence(cause: Cause) -> int:
    """Return how probably a rank ended because of another that ended too: of several, the least of these is to blame.
    What a rank was told by its user's files or disk is nobody's consequence; a lost connection may be."""
    if cause in MENDED_BY_USER or cause is Cause.FOLDER_LOCKED:
        return 0
    return 2 + CONSEQUENCES.index(cause) if cause in CONSEQUENCES else 1


def retried(action: Callable[[], ResultType], *, sleep: Callable[[float], None] = time.sleep) -> ResultType:
    """Return `action()`, called again after errors whose cause is transient; the last try's error is raised."""
    for wait_s in WAITS_S:
        try:
            return action()
        except Exception as error:
            if cause_of(error) is not Cause.TRANSIENT:
                raise
        sleep(wait_s)
    return action()


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, and those that it was raised from, or while they were handled."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        reason = getattr(found, "reason", None)  # urllib wraps what it met
        if isinstance(reason, BaseException):
            yield reason
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def _cause_of_fault(error: BaseException) -> Cause | None:
    """A full disk or a passing fault; None for anything else."""
    classes = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    if classes & LASTING_CLASSES:
        return None
    number = error.errno if isinstance(error, OSError) else None
    if number in DISK_FULL_ERRNOS:
        return Cause.DISK_FULL
    status = _http_status(error)
    is_later = status is not None and (500 <= status <= 599 or status in TRANSIENT_STATUSES)
    if number in TRANSIENT_ERRNOS or is_later or classes & TRANSIENT_CLASSES:
        return Cause.TRANSIENT
    return Cause.TRANSIENT if type(error) is RuntimeError and _is_communication(error.__traceback__) else None


def _http_status(error: BaseException) -> int | None:
    """The status of an object store's answer, by the names that its clients use."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        metadata = response.get("ResponseMetadata")
        found = metadata.get("HTTPStatusCode") if isinstance(metadata, dict) else None
        return found if isinstance(found, int) else None
    for holder in (error, response):
        for name in ("status", "status_code", "http_status", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 100 <= value <= 599 and not isinstance(holder, SystemExit):
                return value
    return None


def _is_communication(traceback: TracebackType | None) -> bool:
    """Whether the innermost frame belongs to the code of collectives."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return False
    return any(place in Path(traceback.tb_frame.f_code.co_filename).as_posix() for place in COMMUNICATION_CODE)
