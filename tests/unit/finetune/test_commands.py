"""Tables and data checks from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cclm.annotations.check import check_folder
from cclm.errors import Cause, ConfigError
from cclm.evaluate.results import ResultStore
from cclm.run.causes import EXIT_CODES
from cclm.shardfile.schema import MANIFEST_NAME
from finetune.__main__ import main
from finetune.commands import run_command
from tests.unit.annotations.annotation_files import write_lines, write_text
from tests.unit.annotations.test_statements import NLI
from tests.unit.evaluate.test_benchmark_table import stored


def test_a_table_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(tmp_path, {"mine": [60, 62], "base": [40, 44]})
    run_command(["table", str(tmp_path), "--task", "xvnli", "--baseline", "base"])
    text = capsys.readouterr().out
    assert "61.00 ± 1.41 *" in text and "UC2" in text


def test_a_table_shows_every_split_unless_one_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(tmp_path, {"mine": [60]}, task="vqa", split="val2014")
    run_command(["table", str(tmp_path)])
    assert "vqa, val2014" in capsys.readouterr().out


def test_a_baseline_is_asked_for_where_it_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(tmp_path / "a", {"mine": [60], "base": [40]})
    stored(tmp_path / "b", {"mine": [60]}, task="marvl")
    run_command(["table", str(tmp_path), "--baseline", "base", "--no-published"])
    assert capsys.readouterr().out.count("60.00 *") == 4
    with pytest.raises(ConfigError):
        run_command(["table", str(tmp_path), "--baseline", "other"])


def test_a_table_says_what_was_trained_on_of_the_test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (_, first), *_ = stored(tmp_path / "runs", {"mine": [60]})
    counts = {"texts": 9, "found_texts": 3, "images": 0, "found_images": 0}
    (tmp_path / "leakage.json").write_text(json.dumps({"files": [{"sha256": first.data_sha256, **counts}]}))
    words = ["table", str(tmp_path / "runs"), "--no-published"]
    run_command([*words, "--leakage", str(tmp_path / "leakage.json")])
    text = capsys.readouterr().out
    assert "3 of 9 sentences, images not compared in the training data" in text
    (tmp_path / "other.json").write_text(json.dumps({"files": []}))
    run_command([*words, "--leakage", str(tmp_path / "other.json")])
    assert "not looked for in the training data" in capsys.readouterr().out
    for kind, line in (("html", "<li>xvnli test in en: 3 of 9"), ("latex", "% xvnli test in en: 3 of 9")):
        run_command([*words, "--leakage", str(tmp_path / "leakage.json"), "--format", kind])
        assert line in capsys.readouterr().out


@pytest.mark.parametrize(("file", "kind"), [("nowhere.json", "terminal"), ("leakage.json", "json")])
def test_leaks_that_would_not_be_said_are_refused(tmp_path: Path, file: str, kind: str) -> None:
    stored(tmp_path / "runs", {"mine": [60]})
    (tmp_path / "leakage.json").write_text(json.dumps({"files": []}))
    with pytest.raises(ConfigError) as caught:
        run_command(["table", str(tmp_path / "runs"), "--format", kind, "--leakage", str(tmp_path / file)])
    assert caught.value.where == "--leakage"


def test_leaks_of_several_files_are_put_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sentences of those in the language; all of them are about the same images."""
    stored(tmp_path / "runs", {"mine": [60]}, data_sha256="ab", data_hashes=("a", "b", "list"))
    counts = {"language": "ar", "texts": 1000, "images": 1000, "found_images": 4}
    files = [
        {**counts, "sha256": "a", "found_texts": 1},
        {**counts, "sha256": "b", "found_texts": 2},
        {**counts, "sha256": "list", "language": "en", "found_texts": 3},
    ]
    (tmp_path / "leakage.json").write_text(json.dumps({"files": files}))
    run_command(["table", str(tmp_path / "runs"), "--leakage", str(tmp_path / "leakage.json")])
    text = capsys.readouterr().out
    assert "in ar: 3 of 2,000 sentences, 4 of 1,000 images" in text and "in fr: not looked for" in text


def test_a_table_in_a_file(tmp_path: Path) -> None:
    stored(tmp_path / "runs", {"mine": [60]})
    target = tmp_path / "table.json"
    run_command(
        ["table", str(tmp_path / "runs"), "--format", "json", "--no-published", "--to", str(target), "--verify"]
    )
    (table,) = json.loads(target.read_text())
    assert [row["model"] for row in table["rows"]] == ["mine"] and table["rows"][0]["cells"]["avg"]["mean"] == 60.0


def test_several_formats_at_once_each_in_its_file(tmp_path: Path) -> None:
    stored(tmp_path / "runs", {"mine": [60]})
    targets = [str(tmp_path / name) for name in ("table.json", "table.html")]
    words = ["table", str(tmp_path / "runs"), "--no-published", "--format", "json", "html", "--to"]
    run_command([*words, *targets])
    assert json.loads((tmp_path / "table.json").read_text()) and "<table" in (tmp_path / "table.html").read_text()
    with pytest.raises(ConfigError) as error:
        run_command([*words, targets[0]])
    assert error.value.got == "2 formats, 1 files"


def test_a_number_that_its_predictions_do_not_give_is_refused(tmp_path: Path) -> None:
    found = stored(tmp_path, {"mine": [60]})
    store = tmp_path / "results.jsonl"
    store.write_text(store.read_text().replace('"value":60.0', '"value":61.0', 1))
    assert len(ResultStore(store).read()) == len(found)
    with pytest.raises(ConfigError) as error:
        run_command(["table", str(tmp_path), "--verify"])
    assert error.value.expected == "61.0000"


def test_what_is_not_there_and_several_tables_in_one_csv_are_refused(tmp_path: Path) -> None:
    stored(tmp_path / "a", {"mine": [60]})
    stored(tmp_path / "b", {"mine": [60]}, task="marvl")
    for words in (["--task", "wit"], ["--split", "dev"], ["--format", "csv"]):
        with pytest.raises(ConfigError):
            run_command(["table", str(tmp_path), *words])


def test_a_data_check_fails_unless_all_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(tmp_path / "XVNLI/annotations/ar/test.jsonl", [NLI] * 1164)
    with pytest.raises(ConfigError):
        run_command(["data", "check", "xvnli", str(tmp_path)])
    assert "XVNLI test in en, es, fr, ru" in capsys.readouterr().out
    for language in ("en", "es", "fr", "ru"):
        write_lines(tmp_path / f"XVNLI/annotations/{language}/test.jsonl", [NLI] * 1164)
    for split in ("train", "dev"):
        write_lines(tmp_path / f"XVNLI/annotations/en/{split}.jsonl", [NLI])
    run_command(["data", "check", "xvnli", str(tmp_path)])
    assert "\nComplete but for the images" in capsys.readouterr().out


def test_a_data_check_looks_for_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the folders that are named, or in those that the recipes name; a shard set holds no files."""
    write_lines(tmp_path / "XVNLI/annotations/ar/test.jsonl", [NLI])
    write_text(tmp_path / "other/75.jpg", "pixels")
    write_text(tmp_path / "shards" / MANIFEST_NAME, "{}")

    def said(*words: str) -> str:
        with pytest.raises(ConfigError):
            run_command(["data", "check", "xvnli", str(tmp_path), *words])
        return capsys.readouterr().out

    assert "Images: not looked for" in said()
    assert "Images: all 1 " in said("--images", str(tmp_path / "other"))
    assert not said("--images", str(tmp_path / "none")) and not said("--images", str(tmp_path / "shards"))
    (tmp_path / "XVNLI/flickr30k-images").mkdir()
    assert "1 of 1, such as 75.jpg" in said()


def test_the_program_knows_these_commands(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stored(tmp_path, {"mine": [60]})
    assert main(["table", str(tmp_path), "--no-published"]) == 0
    assert "60.00" in capfd.readouterr().out
    assert main(["data", "check", "xvnli", str(tmp_path)]) == EXIT_CODES[Cause.USER_ERROR]


def test_forgetting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(tmp_path / "before", {"base": [80]}, protocol="no-fine-tuning")
    stored(tmp_path / "after", {"mine": [50]})
    folders = [str(tmp_path / "before"), str(tmp_path / "after")]
    run_command(["forgetting", *folders])
    assert "-30.00 *" in capsys.readouterr().out
    run_command(["forgetting", *folders, "--format", "html", "--to", str(tmp_path / "page.html")])
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_the_images_of_cvqa_are_unpacked_where_the_recipe_looks(tmp_path: Path) -> None:
    assert main(["stand-in", "cvqa", str(tmp_path / "data")]) == 0
    run_command(["data", "unpack", "cvqa", str(tmp_path / "data"), "--images", str(tmp_path / "own")])
    assert {path.name for path in (tmp_path / "own").iterdir()} >= {"red_circle.jpg", "blue_box.jpg"}
    run_command(["data", "unpack", "cvqa", str(tmp_path / "data")])
    with pytest.raises(ConfigError):
        run_command(["data", "unpack", "xvnli", str(tmp_path / "data")])


@pytest.mark.parametrize("task", ["nlvr2", "cvqa", "vqa", "refcoco"])
def test_stand_in_data_are_of_the_published_form(tmp_path: Path, task: str) -> None:
    """Every row is read, and the image of each is there."""
    assert main(["stand-in", task, str(tmp_path)]) == 0
    if task == "cvqa":
        run_command(["data", "unpack", task, str(tmp_path)])
    report = check_folder(task, tmp_path, [tmp_path / "images"])
    assert report.files and not report.problems
    assert all(one.num_rows == one.num_entries and not one.missing_images for one in report.files)
