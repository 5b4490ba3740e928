"""Which checkpoint a run goes on from, in one process; on ranks: tests/ranks/test_checkpoint.py."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cclm.checkpoint import collective
from cclm.checkpoint.collective import newest_sound
from cclm.distributed.collectives import SINGLE
from cclm.errors import Cause, CheckpointError
from cclm.run.checkpoints import read_marker, step_folder, write_marker
from tests.tiny_checkpoint import write_checkpoint


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collective, "LOOK_AGAIN_S", 0.0)


def spoil(checkpoint: Path, how: str) -> None:
    file, marker = checkpoint / "weights", checkpoint / "complete"
    if how == "flipped":
        file.write_bytes(bytes([file.read_bytes()[0] ^ 4]) + file.read_bytes()[1:])
    elif how == "truncated":
        os.truncate(file, 1)
    elif how == "missing":
        file.unlink()
    elif how == "no marker":
        marker.unlink()
    elif how == "half a marker":
        marker.write_text(marker.read_text()[:30])


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing", "no marker", "half a marker"])
def test_the_older_one_is_taken_and_the_damaged_one_kept(tmp_path: Path, how: str) -> None:
    lines: list[str] = []
    for step in (10, 20):
        write_checkpoint(tmp_path, step, f"content {step}")
    spoil(step_folder(tmp_path, 20), how)
    assert newest_sound(SINGLE, tmp_path, lines.append) == step_folder(tmp_path, 10)
    assert (tmp_path / "checkpoints" / "step_000000020.damaged").is_dir()
    assert len(lines) == 2 and lines[0].count("\n") == lines[1].count("\n") == 1
    assert "step_000000020 set aside as step_000000020.damaged: " in lines[0]
    assert lines[1] == "going on from step_000000010\n"
    lines.clear()
    assert newest_sound(SINGLE, tmp_path, lines.append) == step_folder(tmp_path, 10) and not lines


def test_files_that_a_network_file_system_shows_late_are_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = write_checkpoint(tmp_path, 10, "content")
    (newest / "weights").rename(tmp_path / "not yet")
    monkeypatch.setattr(collective.time, "sleep", lambda _: (tmp_path / "not yet").rename(newest / "weights"))
    assert newest_sound(SINGLE, tmp_path, pytest.fail) == newest


def test_without_checkpoints_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert newest_sound(SINGLE, tmp_path, pytest.fail) is None
    (tmp_path / "checkpoints" / ".step_000000010.partial").mkdir(parents=True)
    assert newest_sound(SINGLE, tmp_path, pytest.fail) is None


def test_if_all_are_damaged_nothing_is_renamed_and_nothing_begins_anew(tmp_path: Path) -> None:
    for step in (10, 20):
        write_checkpoint(tmp_path, step, "content")
        spoil(step_folder(tmp_path, step), "truncated")
    with pytest.raises(CheckpointError, match=r"step_000000020: weights: 1 bytes; step_000000010: .*to start from"):
        newest_sound(SINGLE, tmp_path, pytest.fail)
    assert step_folder(tmp_path, 10).is_dir() and step_folder(tmp_path, 20).is_dir()


def test_another_version_is_refused_and_not_set_aside(tmp_path: Path) -> None:
    for step in (10, 20):
        write_checkpoint(tmp_path, step, "content")
    newest = step_folder(tmp_path, 20)
    write_marker(newest, replace(read_marker(newest), format_version=1))
    with pytest.raises(CheckpointError, match=r"checkpoint format 2 or 3, got 1\."):
        newest_sound(SINGLE, tmp_path, pytest.fail)
    assert step_folder(tmp_path, 20).is_dir()


def test_storage_that_does_not_answer_ends_the_attempt_as_transient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, 10, "content")

    def fail(*_: object) -> list[str]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(collective, "damage_of", fail)
    with pytest.raises(CheckpointError, match=r"rank 0: OSError: \[Errno 5\]") as caught:
        newest_sound(SINGLE, tmp_path, pytest.fail)
    assert caught.value.cause is Cause.TRANSIENT
    assert step_folder(tmp_path, 10).is_dir()
