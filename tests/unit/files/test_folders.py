from __future__ import annotations

import os
from pathlib import Path

import pytest

from cclm.errors import CclmError
from cclm.files.folders import make_folder


def test_made_with_parents_and_left_alone_the_second_time(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert make_folder(folder) == folder
    (folder / "file").touch()
    assert make_folder(folder) == folder
    assert (folder / "file").exists()


def test_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CclmError, match=r"file/run: expected a folder .* got Not a directory .* Choose another folder"):
        make_folder(tmp_path / "file" / "run")


def test_one_that_may_not_be_written_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may
    with pytest.raises(CclmError, match=r"may not write in"):
        make_folder(tmp_path)
