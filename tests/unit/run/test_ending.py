"""Every way to end has a cause, a sentence and a code."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from cclm.errors import Cause, CclmError, ConfigError
from cclm.run.causes import EXIT_CODES
from cclm.run.ending import end_with, explain


def too_much_memory() -> Exception:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    return caught.value


@pytest.mark.parametrize(
    ("error", "cause", "words"),
    [
        (ConfigError(expected="a", got="b", do="c"), Cause.USER_ERROR, "expected a, got b. c"),
        (CclmError(expected="a", got="b", do="c", cause=Cause.FOLDER_LOCKED), Cause.FOLDER_LOCKED, "expected a"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x/log.jsonl"), Cause.DISK_FULL, "runs/x/log.jsonl: "),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Cause.DISK_FULL, "Free space, or raise the quota"),
        (OSError(errno.EIO, "Input/output error", "shard.tar"), Cause.TRANSIENT, "shard.tar: "),
        (ConnectionResetError("Connection reset by peer"), Cause.TRANSIENT, "ConnectionResetError: Connection reset"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), Cause.USER_ERROR, "runs: "),
        (
            OSError(errno.EROFS, "Read-only file system", "runs/log.jsonl"),
            Cause.USER_ERROR,
            "Mend it, or choose another",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "ours.py"), Cause.EXIT, "ours.py"),
        (MemoryError(), Cause.USER_ERROR, "data.micro_batches"),
        (torch.OutOfMemoryError("CUDA out of memory"), Cause.USER_ERROR, "data.micro_batches"),
        (too_much_memory(), Cause.USER_ERROR, "data.micro_batches"),
        (KeyError("x"), Cause.EXIT, "KeyError: 'x'"),
    ],
)
def test_every_end_has_a_cause_a_sentence_and_a_code(
    error: Exception, cause: Cause, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(error, tmp_path)[0] is cause
    assert end_with(error, tmp_path, 3) == EXIT_CODES[cause]
    [sentence] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in sentence
    status = json.loads((tmp_path / "status/rank_3.json").read_text())
    assert (status["cause"], status["rank"]) == (cause.value, 3)


def test_a_traceback_is_shown_where_it_may_tell_more(capsys: pytest.CaptureFixture[str]) -> None:
    for error, has_traceback in (
        (KeyError("x"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ConfigError(expected="a", got="b", do="c"), False),
    ):
        try:
            raise error
        except Exception as caught:  # noqa: BLE001 - it is looked at
            end_with(caught)
        assert ("Traceback" in capsys.readouterr().err) == has_traceback


def test_a_run_folder_that_is_gone_is_no_mistake_of_ours(tmp_path: Path) -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "run/log.jsonl"))
    assert explain(error, tmp_path / "run")[0] is Cause.USER_ERROR


def test_no_run_folder_is_made_to_note_an_end_in_it(tmp_path: Path) -> None:
    end_with(KeyError("x"), tmp_path / "run", 0)
    assert not (tmp_path / "run").exists()


def test_a_command_that_is_no_run_has_other_advice() -> None:
    assert "the same command goes on" not in explain(OSError(errno.ENOSPC, "full"))[1]
    assert "--batch-size" in explain(MemoryError())[1]
