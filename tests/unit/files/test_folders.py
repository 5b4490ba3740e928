from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cclm.errors import CclmError
from cclm.files.atomic import make_folder
from cclm.run.causes import Cause, cause_of


def test_made_with_parents_and_left_alone_the_second_time(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert make_folder(folder) == folder
    (folder / "file").touch()
    assert make_folder(folder) == folder
    assert (folder / "file").exists()


def test_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        CclmError, match=r"file/run: expected a folder .* got .*/file, which is a file\. Choose another folder"
    ):
        make_folder(tmp_path / "file" / "run")


def test_one_that_may_not_be_written_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may
    with pytest.raises(CclmError, match=r"may not write in"):
        make_folder(tmp_path)


def test_behind_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tmp_path / "unmounted")
    for folder in (tmp_path / "runs", tmp_path / "runs" / "a"):
        with pytest.raises(CclmError, match=r"got .*/runs, a link to .*/unmounted, where there is nothing\. Make"):
            make_folder(folder)


def test_a_full_disk_is_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, **_: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(CclmError) as caught:
        make_folder(tmp_path / "a")
    assert cause_of(caught.value) is Cause.DISK_FULL
