"""How a command ends: its streams change nothing, and each end has a sentence and a code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cclm.cli.__main__ import main
from cclm.data.ledger import LedgerFile
from cclm.errors import Cause
from cclm.run.causes import EXIT_CODES

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a ledger, under a name that ASCII lacks."""
    folder = tmp_path / "Läufe"
    folder.mkdir()
    LedgerFile(folder / "ledger.jsonl").append(0, {"image_text": 7})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["", "| head -n 0", ">&-", ">&- 2>&-", "> /dev/full"])
def test_the_streams_change_nothing(run: Path, streams: str) -> None:
    shell = ["bash", "-c", f'set -o pipefail; "$@" {streams}', "bash"]
    done = subprocess.run(
        [*shell, sys.executable, "-m", "cclm.cli", "verify-ledger", str(run)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if not streams:
        assert "L\\xe4ufe/ledger.jsonl: sound, 1 steps" in done.stdout


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "out.json"), EXIT_CODES[Cause.DISK_FULL], "out.json: "),
        (ConnectionResetError("reset"), EXIT_CODES[Cause.TRANSIENT], "Such faults pass"),
        (KeyError("x"), EXIT_CODES[Cause.EXIT], "Traceback"),
    ],
)
def test_each_end_has_a_sentence_and_a_code(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    words: str,
) -> None:
    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr("cclm.data.ledger.verify_ledger", fail)
    assert main(["verify-ledger", str(run)]) == code
    assert words in capsys.readouterr().err
