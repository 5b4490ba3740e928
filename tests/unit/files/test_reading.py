from __future__ import annotations

from pathlib import Path

import pytest

from cclm.errors import ConfigError
from cclm.files.reading import read_json, read_yaml


def test_what_is_right_is_returned(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("é: [1, two]", encoding="utf-8")
    (tmp_path / "b").write_text('{"é": [1, null]}', encoding="utf-8")
    assert read_yaml(tmp_path / "a", expected="a thing", do="Do it.") == {"é": [1, "two"]}
    assert read_json(tmp_path / "b", None) == {"é": [1, None]}
    assert read_json(tmp_path / "c", 5) == 5


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a: [", "line 2: broken YAML: .*"), (b"ab\xff", "bytes that are not UTF-8 .at byte 2.")],
)
def test_broken_yaml_is_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ConfigError, match=f"a: expected a thing, got {words}. Do it.") as caught:
        read_yaml(tmp_path / "a", expected="a thing", do="Do it.")
    assert "\n" not in str(caught.value)


def test_a_folder_and_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got a folder"):
        read_yaml(tmp_path, expected="a thing", do="Do it.")
    with pytest.raises(ConfigError, match="got no such file"):
        read_yaml(tmp_path / "none", expected="a thing", do="Do it.")
    with pytest.raises(ConfigError, match="expected a JSON file, got a folder"):
        read_json(tmp_path, None)


def test_broken_json_says_where(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"half": ')
    with pytest.raises(ConfigError, match=r"got broken JSON: .*line 1 column"):
        read_json(tmp_path / "a", None)
    (tmp_path / "a").write_text("[]")
    with pytest.raises(ConfigError, match=r"got broken JSON: no mapping\."):
        read_json(tmp_path / "a", None)
    assert read_json(tmp_path / "a", [1]) == []
