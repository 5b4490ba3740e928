from __future__ import annotations

from pathlib import Path

import pytest

from cclm.files import lines
from cclm.files.lines import Tail, last_lines, read_since


@pytest.mark.parametrize(
    ("count", "lines"), [(0, []), (1, ["c"]), (2, ["b", "c"]), (9, ["a", "b", "c"])], ids=["0", "1", "2", "all"]
)
@pytest.mark.parametrize("end", ["", "\n"], ids=["open line", "whole line"])
def test_last_lines(tmp_path: Path, count: int, lines: list[str], end: str) -> None:
    path = tmp_path / "log"
    path.write_text("a\nb\nc" + end)
    assert last_lines(path, count) == lines


def test_last_lines_of_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 7)
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(100)))
    assert last_lines(path, 3) == ["line 97", "line 98", "line 99"]
    assert last_lines(path, 1000) == path.read_text().splitlines()


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes("\u00e9\n".encode() + b"\xff\r\n")
    assert last_lines(path, 2) == ["\u00e9", "\ufffd"]


def test_what_was_written_since(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("0123456789")
    assert read_since(path, 4) == "456789"
    assert read_since(path, 0, most_bytes=3) == "789"


def test_each_byte_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("a\nb\n")
    follower = Tail(path, 1)
    with path.open("a") as file:
        file.write("c")
    assert (follower.news(), follower.news()) == (b"b\nc", b"")
    path.write_text("x\n")
    assert follower.news() == b"x\n", "cut off and begun anew"
    path.rename(tmp_path / "log.1")
    assert follower.news() is None
    path.write_text("a longer text than before\n")
    assert follower.news() == b"a longer text than before\n", "another file of the same name"
