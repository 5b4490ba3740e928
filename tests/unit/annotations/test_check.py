"""Data folders: what is recognised, missing and broken; where images lie."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cclm.annotations.check import IMAGE_ROWS, check_folder, report_text
from cclm.annotations.images import Listing, find_image, image_identity, key_of
from cclm.annotations.layouts import find_files
from cclm.annotations.tasks import DATA_SETS, TASKS, XVNLI
from cclm.errors import ConfigError, DataError
from tests.unit.annotations.annotation_files import write_json, write_lines, write_text
from tests.unit.annotations.test_questions import ASKED, SCORED
from tests.unit.annotations.test_statements import MARVL, NLI, NLVR2

VOCABULARY = "trainval_ans2label.json"
PUBLISHED = [
    ("iglue/datasets/XVNLI/annotations/ar/train_48.jsonl", "XVNLI", "train_48", "ar", False),
    ("XVNLI/annotations_machine-translate/ru/test.jsonl", "XVNLI", "test", "ru", True),
    ("xGQA/annotations/few_shot/bn/dev.json", "xGQA", "dev", "bn", False),
    ("xGQA/data/zero_shot/testdev_balanced_questions_pt.json", "xGQA", "testdev", "pt", False),
    ("gqa/annotations/valid.json", "GQA", "valid", "en", False),
    ("marvl/zero_shot/annotations/marvl-ta.jsonl", "MaRVL", "test", "ta", False),
    ("marvl/zero_shot/annotations_machine-translate/marvl-ta_gmt.jsonl", "MaRVL", "test", "ta", True),
    ("marvl/few_shot/annotations/marvl-id_train10x2.jsonl", "MaRVL", "train_10x2", "id", False),
    ("marvl-code/data/tr/annotations/marvl-tr.jsonl", "MaRVL", "test", "tr", False),
    ("marvl/marvl-zh.json", "MaRVL", "test", "zh", False),
    ("nlvr2/annotations/dev.jsonl", "NLVR2", "dev", "en", False),
    ("nlvr2/data/test1.json", "NLVR2", "test", "en", False),
    ("xFlickrCO/annotations/tr/train_100x5.jsonl", "xFlickr&CO", "train_100x5", "tr", False),
    ("xFlickrCO/annotations_machine-translate/es/test_gmt.jsonl", "xFlickr&CO", "test", "es", True),
    ("flickr30k/annotations/valid_ann.jsonl", "Flickr30k", "val", "en", False),
    ("wit/annotations/test_el.jsonl", "WIT", "test", "el", False),
    ("wit/annotations_machine-translate/test_el_gmt.jsonl", "WIT", "test", "el", True),
    ("multi30k-dataset/data/task1/raw/test_2016_flickr.cs.gz", "Multi30K", "test_2016_flickr", "cs", False),
    ("multi30k-dataset/data/task2/raw/val.3.de.gz", "Multi30K", "val.3", "de", False),
    ("finetune/multi30k/test_2016_flickr.de.json", "Multi30K", "test_2016_flickr", "de", False),
    ("finetune/mscoco/ja.1k_test.json", "MSCOCO", "test", "ja", False),
    ("finetune/mscoco/zh.val.json", "MSCOCO", "val", "zh", False),
    ("finetune/nlvr_en/nlvr_dev.json", "NLVR2", "dev", "en", False),
    ("wit/annotations-bs64/test_ar.jsonl", "WIT", "test", "ar", False),
    ("annotations/captions_val2014.json", "MSCOCO", "val", "en", False),
    ("stair_captions_v1.2/stair_captions_v1.2_val.json", "MSCOCO", "val", "ja", False),
    ("mscoco-it/mscoco-it/captions_ita_testset_validated.json.gz", "MSCOCO", "testset_validated", "it", False),
    ("Cross-lingual-Test-Dataset-XTD10/STAIR/test_1kcaptions_jp.txt", "XTD10", "test", "ja", False),
    ("cvqa/data/test-00000-of-00001.parquet", "CVQA", "test", "", False),
    ("vqa/v2_OpenEnded_mscoco_val2014_questions.json", "VQA v2", "val", "en", False),
    ("refcoco/refcoco+_testA.json", "RefCOCO", "testA", "en", False),
]


@pytest.mark.parametrize(("name", "data_set", "split", "language", "is_translated"), PUBLISHED)
def test_published_layouts(
    name: str, data_set: str, split: str, language: str, is_translated: bool, tmp_path: Path
) -> None:
    write_text(tmp_path / name, "")
    (found,) = find_files(DATA_SETS, tmp_path)
    assert (found.data_set.name, found.split, found.language) == (data_set, split, language)
    assert found.is_translated is is_translated


def test_a_data_sets_own_folder_will_do(tmp_path: Path) -> None:
    write_text(tmp_path / "annotations/ar/test.jsonl", "")
    assert [(one.split, one.language) for one in find_files([XVNLI], tmp_path)] == [("test", "ar")]


def test_xm3600_is_one_file_of_many_languages(tmp_path: Path) -> None:
    write_lines(tmp_path / "captions.jsonl", [{"image/key": "a", "fil": {"caption": ["isa"]}}])
    report = check_folder("xm3600", tmp_path)
    assert len(report.files) == 36 and {one.data_set.name for one in report.missing} == {"Flickr30k"}
    assert {one.file.language: one.num_rows for one in report.files}["fil"] == 1


def few(folder: Path, **broken: Any) -> Path:
    write_lines(folder / "few_shot/annotations/marvl-zh_train1.jsonl", [{**MARVL, "language": "zh"}] * 4)
    write_lines(folder / "zero_shot/annotations/marvl-sw.jsonl", [MARVL, {**MARVL, **broken}, {**MARVL, **broken}])
    write_lines(folder / "nlvr2/annotations/dev.jsonl", [NLVR2])
    write_text(folder / "notes.txt", "mine")
    write_lines(folder / "XVNLI/annotations/en/test.jsonl", [NLI])
    return folder


def test_a_report_counts_names_and_misses(tmp_path: Path) -> None:
    report = check_folder("marvl", few(tmp_path))
    found = {(one.file.data_set.name, one.file.split): one for one in report.files}
    assert found["MaRVL", "train_1"].has_published_rows and not found["MaRVL", "test"].has_published_rows
    needed = {(one.data_set.name, one.split): one.languages for one in report.missing if one.is_needed}
    assert needed["MaRVL", "test"] == ["id", "ta", "tr", "zh"] and ("NLVR2", "train") in needed
    assert [path.name for path in report.unrecognised] == ["notes.txt"]
    assert not report.problems and not report.is_complete
    text = report_text(report)
    assert "https://github.com/marvl-challenge/marvl-code" in text and "MaRVL test in id, ta, tr, zh" in text


def test_every_format_error_is_named(tmp_path: Path) -> None:
    report = check_folder("marvl", few(tmp_path, label="perhaps"))
    assert [Path(problem.where).name for problem in report.problems] == ["marvl-sw.jsonl:2", "marvl-sw.jsonl:3"]
    assert "marvl-sw.jsonl:3" in report_text(report)


def test_a_file_that_breaks_off_is_reported_and_the_others_are_read(tmp_path: Path) -> None:
    write_text(tmp_path / "xGQA/annotations/few_shot/bn/dev.json", '{"7": {"imageId"')
    write_json(tmp_path / "xGQA/annotations/few_shot/de/dev.json", {"7": ASKED})
    write_json(tmp_path / "gqa/annotations/trainval_ans2label.json", {"no": 0, "yes": 2})
    report = check_folder("xgqa", tmp_path)
    assert [one.num_rows for one in report.files] == [0, 1]
    assert [Path(problem.where).name for problem in report.problems] == ["dev.json:1", "trainval_ans2label.json"]


def test_a_complete_folder(tmp_path: Path) -> None:
    for language in ("en", "ar", "es", "fr", "ru"):
        write_lines(tmp_path / f"annotations/{language}/test.jsonl", [NLI] * 1164)
    for split in ("train", "dev"):
        write_lines(tmp_path / f"annotations/en/{split}.jsonl", [NLI])
    report = check_folder("xvnli", tmp_path)
    text = report_text(report)
    assert (
        report.is_complete and "no folder of image files is given" in text and "\nComplete but for the images" in text
    )
    write_text(tmp_path / "images/75.jpg", "pixels")
    report = check_folder("xvnli", tmp_path, [tmp_path / "images"])
    assert report.is_complete and report_text(report).endswith("\nComplete.")
    assert not any(one.is_needed for one in report.missing)


def xgqa(folder: Path) -> Path:
    """Write each split that zero-shot needs, and neither GQA's testdev nor any answers."""
    for split in ("train", "valid"):
        write_json(folder / f"gqa/annotations/{split}.json", [SCORED])
    for language in ("en", "bn", "de", "id", "ko", "pt", "ru", "zh"):
        write_json(folder / f"xGQA/annotations/few_shot/{language}/test.json", {"7": ASKED})
    return folder


def test_xgqa_needs_answers_and_no_testdev(tmp_path: Path) -> None:
    report = check_folder("xgqa", xgqa(tmp_path))
    assert [(one.data_set.name, one.split) for one in report.missing if one.is_needed] == [("GQA", VOCABULARY)]
    assert ("GQA", "testdev") in {(one.data_set.name, one.split) for one in report.missing}
    assert f"GQA {VOCABULARY}" in report_text(report)
    write_json(tmp_path / "gqa/annotations/trainval_ans2label.json", {"no": 0})
    assert not any(one.is_needed for one in check_folder("xgqa", tmp_path).missing)
    assert not any(one.split == VOCABULARY for one in check_folder("xvnli", tmp_path).missing)


def test_images_of_the_first_rows_are_looked_for(tmp_path: Path) -> None:
    """Of 1,164 rows with an image each, the first 50 are looked at; one of those is missing."""
    rows = [{**NLI, "Flikr30kID": str(number), "pairID": str(number)} for number in range(1164)]
    for language in ("en", "ar", "es", "fr", "ru"):
        write_lines(tmp_path / f"annotations/{language}/test.jsonl", rows if language == "ar" else [NLI] * 1164)
    for split in ("train", "dev", "train_1"):
        write_lines(tmp_path / f"annotations/en/{split}.jsonl", [NLI] * 3)
    for number in (*range(49), 75):
        write_text(tmp_path / f"images/{number}.jpg", "pixels")
    report = check_folder("xvnli", tmp_path, [tmp_path / "images"])
    (arabic,) = [one for one in report.files if one.missing_images]
    assert (arabic.file.language, arabic.num_images, arabic.missing_images) == ("ar", IMAGE_ROWS, ["49.jpg"])
    assert not report.is_complete and "1 of 50, such as 49.jpg" in report_text(report)
    write_text(tmp_path / "images/49.jpg", "pixels")
    assert "Images: all 57 " in report_text(check_folder("xvnli", tmp_path, [tmp_path / "images"]))


def test_images_that_zero_shot_does_not_need_may_be_missing(tmp_path: Path) -> None:
    """Few-shot images of MaRVL are a download of their own."""
    report = check_folder("marvl", few(tmp_path), [tmp_path])
    needed = {one.file.split: one.file.is_needed for one in report.files if one.missing_images}
    assert needed == {"train_1": False, "dev": True, "test": True}
    assert "(not needed for zero-shot)" in report_text(report)


def test_an_unknown_task_or_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean xvnli"):
        check_folder("xnli", tmp_path)
    with pytest.raises(ConfigError):
        check_folder("xvnli", tmp_path / "none")
    assert set(TASKS) >= {"xvnli", "xgqa", "marvl", "xflickrco", "wit", "multi30k", "mscoco", "cvqa"}


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("759822302.jpg", "759822302.jpg"),
        ("COCO_val2014_000000000009.jpg", "val2014/COCO_val2014_000000000009.jpg"),
        ("train2014/COCO_train2014_000000000009.jpg", "COCO_train2014_000000000009.jpg"),
        ("dev-850-2-img0.png", "dev/dev-850-2-img0.png"),
        ("train/81/train-1-2-img0.png", "images/train/81/train-1-2-img0.png"),
        ("marvl-images/sw/images/6-Ng'ombe/6-5.jpg", "sw/images/6-Ng'ombe/6-5.jpg"),
        ("marvl_fewshot/zh/all/52-4.jpg", "images/marvl_fewshot/zh/all/52-4.jpg"),
        ("images/marvl-images/zh/images/c/1.jpg", "marvl-images/zh/images/c/1.jpg"),
        ("https://a.org/b/c%C3%A1.svg", f"{key_of('https://a.org/b/c%C3%A1.svg')}.png"),
        ("https://a.org/b/c%C3%A1.jpg", "cá.jpg"),
    ],
)
def test_images_are_found_in_published_layouts(name: str, stored: str, tmp_path: Path) -> None:
    path = write_text(tmp_path / "second" / stored, "pixels")
    for is_there in (Path.is_file, Listing()):
        assert find_image([tmp_path / "first", tmp_path / "second"], name, is_there) == path


def test_an_image_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError) as found:
        find_image([tmp_path], "1.jpg")
    assert found.value.reason == "image_missing"


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "a/../../secret.png", "a/{root}/secret.png", "{root}/secret.png", "http://a/..%2Fsecret.png"],
)
def test_a_name_never_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    write_text(tmp_path / "secret.png", "pixels")
    (tmp_path / "data/a").mkdir(parents=True)
    with pytest.raises(DataError) as found:
        find_image([tmp_path / "data"], name.format(root=tmp_path))
    assert found.value.reason == "image_missing"


def test_a_folder_is_listed_once_however_many_images_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "val2014/COCO_val2014_000000000009.jpg", "pixels")
    asked, listed = list[Path](), os.scandir

    def counted(path: Path) -> Any:
        asked.append(path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", counted)
    is_there = Listing()
    for number in range(7, 12):
        with pytest.raises(DataError) if number != 9 else nullcontext():
            find_image([tmp_path], f"COCO_val2014_{number:012d}.jpg", is_there)
    assert asked == [tmp_path, tmp_path / "val2014"]


def test_a_folder_that_may_not_be_listed_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> Any:
        raise PermissionError(path)

    path = write_text(tmp_path / "1.png", "pixels")
    monkeypatch.setattr(os, "scandir", refused)
    assert find_image([tmp_path], "1.png", Listing()) == path


def test_only_files_are_listed(tmp_path: Path) -> None:
    """Not folders, links to nothing and links to themselves."""
    path = write_text(tmp_path / "second/1.png", "pixels")
    (tmp_path / "first/images").mkdir(parents=True)
    (tmp_path / "first/1.png").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    folders = [tmp_path / name for name in ("loop", "first", "second")]
    for is_there in (Path.is_file, Listing()):
        assert find_image(folders, "1.png", is_there) == path
        for name in ("images", "images/", ".", "x/"):
            with pytest.raises(DataError):
                find_image(folders, name, is_there)


def test_a_linked_folder_is_followed(tmp_path: Path) -> None:
    write_text(tmp_path / "disk/1.png", "pixels")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/images").symlink_to(tmp_path / "disk")
    assert find_image([tmp_path / "data"], "images/1.png").read_text() == "pixels"


def test_one_image_is_one_identity_in_every_set() -> None:
    names = ["COCO_val2014_000000000009.jpg", "val2014/COCO_val2014_000000000009.jpg", "COCO_val2014_000000000009"]
    assert {image_identity(name) for name in names} == {"coco-9"}
    assert image_identity("flickr30k-images/100.jpg") == image_identity("100.jpg") == "100"


@pytest.mark.parametrize(("task", "name"), [("vqa", "answer_list.json"), ("cvqa", VOCABULARY)])
def test_the_file_of_answers_is_called_as_its_data_set_has_it(task: str, name: str, tmp_path: Path) -> None:
    assert name in [one.split for one in check_folder(task, tmp_path).missing if one.is_needed]
    write_json(
        tmp_path / ("vqa/X/answer_list.json" if task == "vqa" else f"gqa/annotations/{name}"), {"no": 0, "yes": 1}
    )
    report = check_folder(task, tmp_path)
    assert list(report.answers.values()) == [2] and name not in [one.split for one in report.missing]
