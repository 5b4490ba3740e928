from __future__ import annotations

from pathlib import Path

import pytest

from cclm.errors import ConfigError
from cclm.files.lines import text_lines


def test_lines_end_where_files_end_them(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffone\u2028still one\r\n\x0btwo\x85 two\rtwo\n\nfour".encode())
    assert list(text_lines(path)) == ["one\u2028still one", "\x0btwo\x85 two\rtwo", "", "four"]


def test_other_encodings_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("fine\nÜbung\n".encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        list(text_lines(path))
    assert caught.value.where == f"{path}:2" and "byte 0xdc at position 0" in caught.value.got
    assert "iconv -f LATIN1" in caught.value.do
    path.write_bytes("text".encode("utf-16"))
    with pytest.raises(ConfigError) as caught:
        list(text_lines(path))
    assert "iconv -f UTF-16" in caught.value.do
    for gone in (tmp_path / "gone.txt", tmp_path):
        with pytest.raises(ConfigError) as caught:
            list(text_lines(gone))
        assert caught.value.where == str(gone)
