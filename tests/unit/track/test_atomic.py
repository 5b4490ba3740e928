from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from cclm.track.atomic import replace_text


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new folder" / "file.json"
    replace_text(path, "first", durable=durable)
    replace_text(path, "zweite ß", durable=durable)
    assert path.read_text(encoding="utf-8") == "zweite ß"
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
    assert seen <= {letter * 10_000 for letter in "abc"}
