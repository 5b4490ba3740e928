"""What people write is read as they meant it, with its line, or refused with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cclm.errors import Problem
from cclm.files.document import parse_document, read_document
from cclm.files.node import BrokenError, Node, node_of, plain, plain_word


def values(text: str, suffix: str = ".yaml") -> Any:
    problems: list[Problem] = []
    found = plain(parse_document(text, "f", problems, suffix))
    assert problems == []
    return found


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *(("1e-4", 1e-4), ("1E3", 1000.0), ("-.5", -0.5), ("5.", 5.0), ("1_000", 1000), ("0x1F", 31), ("0o17", 15)),
        *(("12:30", "12:30"), ("12:30:45", "12:30:45"), ("2024-01-01", "2024-01-01"), ("010", "010"), ("08", "08")),
        *(("no", False), ("On", True), ("YES", True), ("off", False), ("y", "y"), ("nO", "nO"), ("true", True)),
        *(("~", None), ("", None), ("NULL", None), ("none", "none"), ("-", "-"), (".", "."), ("1.2.3", "1.2.3")),
        *(("+5", 5), ("٣", "٣"), ("1__0", "1__0"), (".inf", float("inf")), ("inf", "inf"), ("e5", "e5")),
    ],
)
def test_what_a_word_without_quotes_means(word: str, value: object) -> None:
    found = plain_word(word)
    assert found == value and type(found) is type(value)


def test_quoted_words_are_texts() -> None:
    assert values("[no, 'no', \"1e-4\", !!str 5]") == [False, "no", "1e-4", "5"]
    assert values("a: |-\n  yes\nb: >-\n  5\n") == {"a": "yes", "b": "5"}


def test_lines_of_values_and_keys() -> None:
    root = parse_document("a: 1\nb:\n  c: [2,\n   3]\n", "f.yaml", [])
    assert isinstance(root.value, dict)
    inner = root.value["b"].value
    assert isinstance(inner, dict) and isinstance(inner["c"].value, tuple)
    assert [node.place for node in inner["c"].value] == ["f.yaml:3", "f.yaml:4"]
    assert root.value["b"].key == Node(value="b", place="f.yaml:2", text="b")
    root = parse_document('{"a": 1,\n\n "b": {"c": [2,\n 3]}}', "f.json", [], ".json")
    assert [node.place for node in root.walk()] == [
        "f.json:1",
        "f.json:1",
        "f.json:3",
        "f.json:3",
        "f.json:3",
        "f.json:4",
    ]


@pytest.mark.parametrize(
    ("text", "suffix", "key", "line"),
    [
        ("a: 1\nb: {c: 1,\n  c: 2}\n", ".yaml", "c", 3),
        ("data:\n  x: 1\nseed: 1\ndata:\n  y: 1\n", ".yaml", "data", 4),
        ("no: 1\n'no': 2\n", ".yaml", "no", 2),
        ('{"a": 1,\n "a": 2}', ".json", "a", 2),
        ('[{"a": {"b": 1,\n\n "b": 1}}]', ".json", "b", 3),
    ],
)
def test_a_key_that_stands_twice_is_named_with_its_line(text: str, suffix: str, key: str, line: int) -> None:
    problems: list[Problem] = []
    parse_document(text, "f", problems, suffix)
    assert [(found.kind, found.key, found.place) for found in problems] == [("duplicate_key", key, f"f:{line}")]


def test_toml_refuses_a_key_that_stands_twice_too() -> None:
    pytest.importorskip("tomllib")
    assert values('a = 1\n[b.c]\nd = [1.5, "x"]\nday = 2024-01-01\n', ".toml") == {
        "a": 1,
        "b": {"c": {"d": [1.5, "x"], "day": "2024-01-01"}},
    }
    with pytest.raises(BrokenError, match="broken TOML"):
        parse_document("a = 1\na = 2\n", "f", [], ".toml")


def test_merge_keys_give_way_to_own_keys_and_are_no_duplicates() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 5}\nd: {x: 6, <<: *b}\n"
    assert values(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"y": 3, "z": 4},
        "c": {"x": 5, "y": 2, "z": 4},
        "d": {"x": 6, "y": 3, "z": 4},
    }


@pytest.mark.parametrize(
    ("text", "suffix", "line", "words"),
    [
        ("a: 1\nb: [1, 2\n", ".yaml", 3, "broken YAML"),
        ("a: !!python/object:os.system x\n", ".yaml", 1, "tag"),
        ("a: 1\nb: !thing {}\n", ".yaml", 2, "tag"),
        ("a: 1\n---\nb: 2\n", ".yaml", 3, "second YAML document"),
        ("a: 1\nb: *gone\n", ".yaml", 2, "alias"),
        ("a: &a\n  - *a\n", ".yaml", 2, "alias"),
        ("? [a]\n: 1\n", ".yaml", 1, "list or mapping as a key"),
        ("a: {<<: 1}\n", ".yaml", 1, "merge key"),
        ("a: \x07", ".yaml", 1, "control characters"),
        ('{"a": 1,\n "b" 2}', ".json", 2, "broken JSON"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(text: str, suffix: str, line: int, words: str) -> None:
    with pytest.raises(BrokenError, match=words) as caught:
        parse_document(text, "f", [], suffix)
    assert caught.value.place == f"f:{line}"


@pytest.mark.parametrize("suffix", [".yaml", ".json", ".toml"])
@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 50_000, "a: " + "[" * 100_000, '{"a":' * 100_000])
def test_deeply_nested_files_are_refused_and_kill_nothing(suffix: str, text: str) -> None:
    with pytest.raises(BrokenError):
        parse_document(text, "f", [], suffix)


def test_aliases_of_aliases_are_refused_before_they_are_written_out() -> None:
    lines = ["a0: &a0 [1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]
    with pytest.raises(BrokenError, match="100,000 values"):
        parse_document("\n".join(lines), "f", [])


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "a folder"), (b"a: \xff", "not UTF-8 (at byte 3)")],
)
def test_files_that_cannot_be_opened(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "f.yaml"
    if content == b"":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    problems: list[Problem] = []
    assert read_document(path, problems) is None
    assert [(found.kind, words in found) for found in problems] == [("unreadable", True)]


def test_a_byte_order_mark_and_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    (tmp_path / "b.json").write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}')
    (tmp_path / "c.yaml").write_text("# nothing\n")
    found = [read_document(tmp_path / name, []) for name in ("a.yaml", "b.json", "c.yaml")]
    assert [None if node is None else plain(node) for node in found] == [{"a": 1}, {"a": "😀"}, None]


def test_plain_values_become_nodes_and_come_back() -> None:
    content = {"a": [1, 2.5, None, True], "b": {"c": "x"}}
    assert plain(node_of(content, "here")) == content
    assert {node.place for node in node_of(content, "here").walk()} == {"here"}
