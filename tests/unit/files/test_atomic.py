from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from cclm.files import atomic
from cclm.files.atomic import publish, replace_bytes, replace_text, temporary_path


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new folder" / "file.json"
    replace_text(path, "first", durable=durable)
    replace_text(path, "zweite ß\r\n", durable=durable)
    assert path.read_bytes() == "zweite ß\r\n".encode()
    assert [item.name for item in path.parent.iterdir()] == ["file.json"]


def _write_often(path: Path, letter: str) -> None:
    for _ in range(200):
        replace_text(path, letter * 10_000)


def test_a_reader_never_sees_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_text(path, "a" * 10_000)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(path, letter)) for letter in "bc"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(path.read_text())
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {letter * 10_000 for letter in "abc"}


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_bytes(path, b"old")

    def fail(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        replace_bytes(path, b"new", durable=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_durable_syncs_the_file_before_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    seen: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(path.exists()))
    replace_bytes(path, b"1")
    assert seen == []
    path.unlink()
    replace_bytes(path, b"2", durable=True)
    assert seen == [False, True]


def test_a_grown_file_gets_its_name_at_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tar"
    synced: list[Path] = []
    temporary_path(path).write_bytes(b"whole")
    monkeypatch.setattr(atomic, "sync", synced.append)
    publish(temporary_path(path), path)
    assert path.read_bytes() == b"whole"
    assert synced == [tmp_path]
    assert temporary_path(path) == tmp_path / ".a.tar.partial"
