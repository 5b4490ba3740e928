"""Every file under a path that a recipe names is read, or told as left out with its kind."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from cclm.errors import ConfigError
from shards.__main__ import main
from shards.corpora.files import accounting, named_files
from shards.corpora.table import corpus_of
from tests.unit.shards.corpora.tiny_files import build, write_pictures


def found(path: Path, *suffixes: str) -> tuple[list[str], dict[str, int]]:
    with accounting() as account:
        files = named_files(path, suffixes)
    return list(files), {why: kind["files"] for why, kind in account.kinds().items()}


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x\ty\n")
    return folder


def test_suffixes_that_are_not_read(tmp_path: Path) -> None:
    fill(tmp_path, "1.tsv", "2.TSV", "3.tsv.GZ", "4.Tsv.Xz", "5.tsv.zip", "6.tsv.7z", "7.json.gz", "README")
    files, left_out = found(tmp_path, ".tsv")
    assert files == ["1.tsv", "2.TSV", "3.tsv.GZ", "4.Tsv.Xz"]
    assert left_out == {".7z": 1, ".json.gz": 1, ".zip": 1, "no suffix": 1}


def test_what_other_programs_leave(tmp_path: Path) -> None:
    fill(tmp_path, "a.tsv", "._a.tsv", ".DS_Store", "__MACOSX/b.tsv", ".ipynb_checkpoints/a-checkpoint.tsv", "_SUCCESS")
    assert found(tmp_path, ".tsv") == (["a.tsv"], {"hidden": 4, "no suffix": 1})
    assert found(tmp_path)[1] == {"hidden": 5}
    assert found(tmp_path / "*.tsv", ".tsv")[0] == ["a.tsv"]


def test_files_that_hold_nothing_or_never_end(tmp_path: Path) -> None:
    fill(tmp_path, "a.tsv")
    (tmp_path / "empty.tsv").touch()
    os.mkfifo(tmp_path / "pipe.tsv")
    (tmp_path / "gone.tsv").symlink_to(tmp_path / "nowhere")
    assert found(tmp_path, ".tsv") == (["a.tsv"], {"empty": 1, "no regular file": 2})


def test_a_file_beside_its_own_package_is_read_once(tmp_path: Path) -> None:
    fill(tmp_path, "a.tsv", "a.tsv.gz", "a.tsv.xz", "b.tsv.gz", "sub/a.tsv.gz")
    files, left_out = found(tmp_path, ".tsv")
    assert files == ["a.tsv", "b.tsv.gz", "a.tsv.gz"] and left_out == {"the same name, compressed or not": 2}
    assert len(named_files([tmp_path / "a.tsv", tmp_path / "a.tsv.gz"], [".tsv"])) == 2, "who names both wants both"


def test_links_are_followed_once(tmp_path: Path) -> None:
    fill(tmp_path / "data", "real/a.tsv", "real/deep/b.tsv")
    fill(tmp_path / "elsewhere", "c.tsv")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data" / "real")
    (tmp_path / "data" / "real" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    files, left_out = found(tmp_path / "data", ".tsv")
    assert files == ["c.tsv", "a.tsv", "b.tsv"] and left_out == {"a link to a folder that is read already": 2}


def test_a_link_beside_the_file_that_it_leads_to_is_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "data/b.tsv", "elsewhere/d.tsv")
    (tmp_path / "data" / "a.tsv").symlink_to("b.tsv")
    (tmp_path / "data" / "c.tsv").symlink_to("b.tsv")
    for name in ("d.tsv", "e.tsv"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / "d.tsv")
    (tmp_path / "data" / "loop.tsv").symlink_to("loop.tsv")
    files, left_out = found(tmp_path / "data", ".tsv")
    assert files == ["b.tsv", "d.tsv"]
    assert left_out == {"a link to a file that is read already": 3, "no regular file": 1}


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    fill(tmp_path, "a.tsv")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tsv"))).write_text("x\ty\n")
    with accounting() as account:
        assert list(named_files(tmp_path, [".tsv"])) == ["a.tsv"]
    assert account.kinds() == {"a name that is not UTF-8": {"files": 1, "first": "\\udcff.tsv"}}


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(ConfigError, match="expected a folder that can be read, got Permission denied"):
        named_files(tmp_path, [".tsv"])


def test_patterns_may_name_folders_and_several_levels(tmp_path: Path) -> None:
    fill(tmp_path, "x/2019/a.tsv", "x/2020/b.tsv", "x/2020/.c.tsv", "y/2020/d.tsv", "x/2020/e.txt")
    assert found(tmp_path / "x" / "20*", ".tsv") == (["a.tsv", "b.tsv"], {".txt": 1, "hidden": 1})
    assert found(tmp_path / "*" / "2020" / "*.tsv", ".tsv")[0] == ["b.tsv", "d.tsv"]


def test_a_path_without_a_fitting_file_says_what_is_there(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt", "b.txt")
    with pytest.raises(ConfigError, match=r"ends in .tsv, got none, and 2 other files \(.txt 2\)"):
        named_files(tmp_path, [".tsv"])


def test_left_out_files_are_told_by_build_manifest_verify_and_stats(tmp_path: Path) -> None:
    fill(tmp_path / "corpus", "a.tsv", "b.tsv.zip", "c.tsv.rar", "d.tsv.rar")
    options = {"path": str(tmp_path / "corpus"), "lang_a": "en", "lang_b": "de"}
    sets = {"sets": {"s": {"view": "text_pair", "corpus": "pair_file", "options": options, "num_shards": 1}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(sets))

    def run(*command: object) -> str:
        buffer = io.StringIO()
        assert main([str(word) for word in command], Console(file=buffer, width=300)) == 0
        return buffer.getvalue()

    words = "left out: 3 files (.rar 2, .zip)"
    assert run("build", tmp_path / "recipe.yaml", "--out", tmp_path / "out").count(words) == 2
    assert words in run("verify", tmp_path / "out") and words in run("stats", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "s" / "manifest.json").read_bytes())["config"]
    assert config["left_out"] == {
        ".rar": {"files": 2, "first": "c.tsv.rar"},
        ".zip": {"files": 1, "first": "b.tsv.zip"},
    }


def test_a_file_of_another_option_of_the_same_corpus_is_not_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", ["1.jpg"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.token").write_text("1.jpg#0\tTwo men.\n")
    (tmp_path / "notes" / "fr.tsv").write_text("id\ttext\n1.jpg\tDeux hommes\n")
    options = {
        "captions": {"en": str(tmp_path / "notes")},
        "images": str(tmp_path / "images"),
        "translations": [{"path": str(tmp_path / "notes"), "language": "fr", "join_on": "image"}],
    }
    with accounting() as account:
        corpus_of("flickr30k", options).parts()
    assert account.kinds() == {}
    (record,), refused = build("flickr30k", **options)
    assert record.captions == {"en": ["Two men."], "fr": ["Deux hommes"]} and not refused


def test_a_second_table_of_captions_is_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["1.jpg"])
    (tmp_path / "captions.jsonl").write_text('{"image": "1.jpg", "captions": {"en": "x"}}\n')
    (tmp_path / "captions.csv").write_text("image,language,caption\n1.jpg,en,y\n")
    with accounting() as account:
        corpus_of("image_folder", {"folder": str(tmp_path)}).parts()
    assert account.kinds() == {"a second table beside captions.jsonl": {"files": 1, "first": "captions.csv"}}
