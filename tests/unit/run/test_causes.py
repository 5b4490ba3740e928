from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import pickle
import socket
import ssl
import subprocess
import sys
import urllib.error
from email.message import Message
from pathlib import Path

import pytest

from cclm.errors import CclmError, CheckpointError, ConfigError, DataError
from cclm.run.causes import EXIT_CODES, MENDED_BY_USER, Cause, cause_of, cause_of_code

ROOT = Path(__file__).resolve().parents[3]
USUAL = {"expected": "a shard", "got": "something else", "do": "Mend it."}


class StoreError(Exception):
    """As botocore has it."""

    def __init__(self, status: int) -> None:
        super().__init__("words")
        self.response = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": status}}


class AnswerError(Exception):
    """As aiohttp has it."""

    def __init__(self, status: int) -> None:
        super().__init__("words")
        self.status = status


def raised_from(error: CclmError, reason: BaseException) -> CclmError:
    try:
        raise error from reason
    except CclmError as found:
        return found


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.EIO, "x"), Cause.TRANSIENT),
        (OSError(errno.ESTALE, "x"), Cause.TRANSIENT),
        (OSError(errno.ETIMEDOUT, "x"), Cause.TRANSIENT),
        (OSError(errno.ENETUNREACH, "x"), Cause.TRANSIENT),
        (BrokenPipeError(errno.EPIPE, "x"), Cause.TRANSIENT),
        (ConnectionResetError("no number"), Cause.TRANSIENT),
        (TimeoutError("no number"), Cause.TRANSIENT),
        (asyncio.TimeoutError(), Cause.TRANSIENT),
        (concurrent.futures.TimeoutError(), Cause.TRANSIENT),
        (socket.gaierror(socket.EAI_AGAIN, "x"), Cause.TRANSIENT),
        (ssl.SSLEOFError(8, "x"), Cause.TRANSIENT),
        (ssl.SSLCertVerificationError(1, "x"), Cause.EXIT),
        (urllib.error.URLError(OSError(errno.EHOSTUNREACH, "x")), Cause.TRANSIENT),
        (urllib.error.HTTPError("u", 503, "x", Message(), None), Cause.TRANSIENT),
        (urllib.error.HTTPError("u", 404, "x", Message(), None), Cause.EXIT),
        (StoreError(503), Cause.TRANSIENT),
        (StoreError(403), Cause.EXIT),
        (AnswerError(500), Cause.TRANSIENT),
        (AnswerError(429), Cause.TRANSIENT),
        (AnswerError(404), Cause.EXIT),
        (OSError(errno.ENOSPC, "x"), Cause.DISK_FULL),
        (OSError(errno.EDQUOT, "x"), Cause.DISK_FULL),
        (OSError(errno.EFBIG, "x"), Cause.DISK_FULL),
        (FileNotFoundError(errno.ENOENT, "x"), Cause.EXIT),
        (RuntimeError("EIO, ESTALE, 503, NCCL: words alone say nothing"), Cause.EXIT),
        (KeyboardInterrupt(), Cause.SIGNAL),
        (SystemExit(2), Cause.USER_ERROR),
        (SystemExit("a sentence"), Cause.EXIT),
        (SystemExit(None), Cause.DONE),
        (ConfigError(**USUAL), Cause.USER_ERROR),
        (CclmError(**USUAL, cause=Cause.FOLDER_LOCKED), Cause.FOLDER_LOCKED),
        (raised_from(DataError(reason="r", **USUAL), OSError(errno.EIO, "x")), Cause.TRANSIENT),
        (raised_from(CheckpointError(**USUAL), OSError(errno.ENOSPC, "x")), Cause.DISK_FULL),
        (raised_from(ConfigError(**USUAL), FileNotFoundError(errno.ENOENT, "x")), Cause.USER_ERROR),
        (raised_from(ConfigError(**USUAL, cause=Cause.USER_ERROR), OSError(errno.EIO, "x")), Cause.USER_ERROR),
    ],
    ids=lambda value: value.value if isinstance(value, Cause) else repr(value)[:60],
)
def test_an_exception_has_a_cause(error: BaseException, cause: Cause) -> None:
    assert cause_of(error) is cause


@pytest.mark.parametrize("place", ["torch/distributed/distributed_c10d.py", "deepspeed/utils/nvtx.py"])
def test_a_lost_neighbour_is_known_by_where_it_was_noticed(tmp_path: Path, place: str) -> None:
    code = compile("def wait(error):\n    raise error", str(tmp_path / place), "exec")
    space: dict[str, object] = {}
    exec(code, space)
    wait = space["wait"]
    assert callable(wait)
    for error, cause in ((RuntimeError("x"), Cause.TRANSIENT), (TypeError("x"), Cause.EXIT)):
        with pytest.raises(type(error)) as caught:
            wait(error)
        assert cause_of(caught.value) is cause


@pytest.mark.slow
def test_the_real_classes_of_other_libraries() -> None:
    """Their names in our table are theirs."""
    botocore = pytest.importorskip("botocore.exceptions")
    aiohttp = pytest.importorskip("aiohttp")
    distributed = pytest.importorskip("torch.distributed")
    errors = [
        botocore.EndpointConnectionError(endpoint_url="u"),
        botocore.ReadTimeoutError(endpoint_url="u"),
        botocore.ClientError({"ResponseMetadata": {"HTTPStatusCode": 503}}, "GetObject"),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError(),
        distributed.DistNetworkError("x"),
        distributed.DistBackendError("x"),
    ]
    assert [cause_of(error) for error in errors] == [Cause.TRANSIENT] * len(errors)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (0, Cause.DONE),
        (1, Cause.EXIT),
        (2, Cause.USER_ERROR),
        (3, Cause.EXIT),
        (69, Cause.FOLDER_LOCKED),
        (73, Cause.DISK_FULL),
        (74, Cause.TRANSIENT),
        (75, Cause.STOPPED),
        (76, Cause.HUNG),
        (126, Cause.NOT_STARTED),
        (127, Cause.NOT_STARTED),
        (143, Cause.ENDED),
        (-15, Cause.ENDED),
        (137, Cause.SIGNAL),
        (-11, Cause.SIGNAL),
    ],
)
def test_an_exit_code_has_a_cause(code: int, cause: Cause) -> None:
    assert cause_of_code(code) is cause


def test_every_cause_has_a_code_but_a_signal() -> None:
    assert set(Cause) - set(EXIT_CODES) == {Cause.SIGNAL}
    assert set(EXIT_CODES) > MENDED_BY_USER


def test_an_error_keeps_its_cause_across_processes() -> None:
    error = DataError(reason="r", where="w", cause=Cause.TRANSIENT, **USUAL)
    again = pickle.loads(pickle.dumps(error))
    assert (again.cause, again.reason, str(again)) == (Cause.TRANSIENT, "r", str(error))


def test_causes_load_no_torch() -> None:
    code = "import sys, cclm.run.causes; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True)
