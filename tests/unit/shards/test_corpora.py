"""Each corpus on a few files of its own kind; broken entries become refused records with their reasons."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cclm.errors import ConfigError, DataError
from shards.corpora.image_corpus import load_first
from shards.corpora.image_tables import ImageFolder
from shards.corpora.pair_file import PairFile
from tests.unit.shards.tiny_corpora import read_all, write_picture_folder


def made_and_refused(parts: Any) -> Any:
    made, refused = [], {}
    for lazy in read_all(parts):
        try:
            made.append(lazy.make())
        except DataError as error:
            refused[lazy.key] = error
    return made, refused


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    folder = write_picture_folder(tmp_path / "my corpus")
    records, refused = made_and_refused(ImageFolder(folder=folder, licence="CC0-1.0").parts())
    assert [(record.image_format, record.captions) for record in records[:3]] == [
        ("jpg", {"en": ["picture 0"]}),
        ("png", {"en": ["picture 1"]}),
        ("webp", {"en": ["picture 2"]}),
    ]
    assert records[1].image == (folder / "a" / "picture 1.png").read_bytes()
    assert (records[0].source, records[0].licence, records[0].ids) == (
        "my corpus",
        "CC0-1.0",
        {"path": "a/picture 0.jpg"},
    )
    assert records[0].key.startswith("a_picture_0-")
    reasons = sorted(error.reason for error in refused.values())
    assert reasons == ["captions_empty", "image_missing", "image_truncated", "line_broken"]
    broken = next(error for error in refused.values() if error.reason == "line_broken")
    assert "captions.jsonl:7: expected one JSON object a line, in UTF-8" in str(broken)
    missing = next(error for error in refused.values() if error.reason == "image_missing")
    assert missing.where.startswith("captions.jsonl:"), "refusals name the table's line"


def test_a_picture_that_ends_well_but_does_not_decode(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    Image.new("RGB", (30, 30)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:45] + bytes(8) + data[53:])
    (tmp_path / "captions.jsonl").write_text('{"image": "p.png", "captions": {"en": ["x"]}}')
    _, refused = made_and_refused(ImageFolder(folder=tmp_path).parts())
    assert [error.reason for error in refused.values()] == ["image_broken"]


def test_captions_as_csv(tmp_path: Path) -> None:
    Image.new("RGB", (3, 3)).save(tmp_path / "p.png")
    (tmp_path / "captions.csv").write_text(
        "\ufeffimage,language,caption,licence\np.png,en,a dog,MIT\np.png,en,one dog,MIT\np.png,he,כלב,MIT\n",
        encoding="utf-8",
    )
    records, refused = made_and_refused(ImageFolder(folder=tmp_path).parts())
    assert not refused and len(records) == 1
    assert (records[0].captions, records[0].licence) == ({"en": ["a dog", "one dog"], "he": ["כלב"]}, "MIT")


def test_a_folder_without_a_table_and_a_table_without_a_header(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected captions.jsonl, captions.csv, .* got no such file"):
        read_all(ImageFolder(folder=tmp_path).parts())
    (tmp_path / "captions.csv").write_text("p.png,en,a dog\n")
    with pytest.raises(ConfigError, match=r"expected the columns image, language, caption, got p.png, en, a dog"):
        read_all(ImageFolder(folder=tmp_path).parts())


def test_keys_of_like_paths_differ(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/b.png", "a_b.png"):
        Image.new("RGB", (3, 3)).save(tmp_path / name)
    lines = [{"image": name, "captions": {"en": ["x"]}} for name in ("a/b.png", "a_b.png")]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert len({lazy.key for lazy in read_all(ImageFolder(folder=tmp_path).parts())}) == 2


def test_a_folder_of_pictures_is_not_looked_at_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten million pictures on a network file system take a quarter of an hour to look at."""
    folder = write_picture_folder(tmp_path / "corpus")
    looked_at = []
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **more: looked_at.append(path.suffix) or stat(path, **more))
    records = ImageFolder(folder=folder).parts()[0].read()
    assert next(iter(records)).key.startswith("a_picture_0-")
    assert not {".jpg", ".png", ".webp"} & set(looked_at)


def test_tab_separated_pairs_are_grouped_by_their_first_text(tmp_path: Path) -> None:
    path = tmp_path / "news.tsv"
    path.write_bytes(b"a dog\tein Hund\t1.5\na cat\teine Katze\na dog\tder Hund\n" + b"\xff\tx\none\n\ty\n")
    groups, refused = made_and_refused(PairFile(path=path, lang_a="en", lang_b="de").parts())
    assert [[pair.text_b for pair in group] for group in groups] == [["ein Hund"], ["eine Katze"], ["der Hund"]]
    first = groups[0][0]
    assert (first.lang_a, first.lang_b, first.source, first.score) == ("en", "de", "news", 1.5)
    assert groups[0][0].group == groups[2][0].group != groups[1][0].group
    assert {key: error.reason for key, error in refused.items()} == {
        "news.tsv:4": "line_broken",
        "news.tsv:5": "line_broken",
        "news.tsv:6": "text_empty",
    }


def test_json_pairs_may_name_languages_and_group(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [
        {"text_a": "dog", "lang_a": "en", "text_b": "犬", "lang_b": "ja", "group": "d"},
        {"text_a": "dog", "text_b": "Hund", "group": "d", "source": "other"},
        {"text_a": "dog"},
        [],
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    groups, refused = made_and_refused(PairFile(path=path, lang_a="en", lang_b="de").parts())
    assert [(pair.text_b, pair.lang_b, pair.source) for pairs in groups for pair in pairs] == [
        ("犬", "ja", "p"),
        ("Hund", "de", "other"),
    ]
    assert sorted(refused) == ["p.jsonl:3", "p.jsonl:4"]


def test_pair_files_that_cannot_be_read_as_such(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"expected a file that ends in .tsv, .csv, .jsonl, .parquet, .arrow, got no such file"
    ):
        PairFile(path=tmp_path / "x.tsv", lang_a="en", lang_b="de").parts()
    (tmp_path / "x.doc").write_bytes(b"x")
    with pytest.raises(
        ConfigError, match=r"expected a file that ends in .tsv, .csv, .jsonl, .parquet, .arrow, got x.doc"
    ):
        read_all(PairFile(path=tmp_path / "x.doc", lang_a="en", lang_b="de").parts())
    (tmp_path / "x.tsv").write_bytes(b"x\ty\n")
    with pytest.raises(ConfigError, match="expected lang_a and lang_b"):
        PairFile(path=tmp_path / "x.tsv", lang_a="en").parts()
    (tmp_path / "x.tsv").write_bytes(b"a\tb\tc\td\n")
    with pytest.raises(ConfigError, match="expected the columns text_a, text_b, score, got a first line of 4"):
        read_all(PairFile(path=tmp_path / "x.tsv", lang_a="en", lang_b="de").parts())


def test_a_fault_of_the_disk_is_no_missing_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"an image")

    def read_bytes(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(OSError, match="Input/output error"):
        load_first([tmp_path], "a.jpg")
