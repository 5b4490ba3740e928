"""What each retrieval benchmark asks, found in folders as they are published."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from cclm.annotations import retrieval
from cclm.annotations.retrieval import SPLITS, Part, asked_in, read_pairs
from cclm.annotations.tasks import TASKS
from cclm.errors import ConfigError, DataError
from cclm.files.atomic import file_sha256
from tests.unit.annotations.annotation_files import write_json, write_lines, write_text

WIT: dict[str, Any] = {"image_url": "https://a/b.svg", "caption_reference_description": "karta"}


def told(task: str, folder: Path, part: Part = "test", **options: Any) -> dict[str, dict[str, tuple[str, ...]]]:
    """Language → image → captions."""
    found = asked_in(task, folder, part, **options)
    return {language: {row.id: row.captions for row in asked.rows} for language, asked in found.items()}


def row(name: str, *sentences: str) -> dict[str, Any]:
    return {"img_path": f"{name}.jpg", "sentences": list(sentences)}


def test_every_retrieval_task_has_its_splits() -> None:
    for task, splits in SPLITS.items():
        names = {split.name for data_set in TASKS[task] for split in data_set.splits}
        assert set(splits.values()) <= names and "test" in splits


def test_xflickrco_and_flickr30k_and_translations(tmp_path: Path) -> None:
    own = tmp_path / "iglue" / "xFlickrCO"
    write_lines(own / "annotations" / "de" / "test.jsonl", [row("1", "Ein Hund")])
    write_lines(own / "annotations" / "de" / "train_5.jsonl", [row("2", "anders")])
    write_lines(own / "annotations_machine-translate" / "de" / "test_gmt.jsonl", [row("1", "A dog")])
    write_json(
        tmp_path / "flickr30k" / "dataset_flickr30k.json",
        {"images": [{"filename": f"{n}.jpg", "split": n, "sentences": [{"raw": n}]} for n in ("train", "val", "test")]},
    )
    assert told("xflickrco", tmp_path) == {"de": {"1": ("Ein Hund",)}}
    assert told("xflickrco", tmp_path, translated=True) == {"de": {"1": ("A dog",)}}
    assert told("xflickrco", tmp_path, "dev") == {"en": {"val": ("val",)}}
    asked = asked_in("xflickrco", tmp_path, "test")["de"]
    assert asked.split == "test" and asked.sha256 == file_sha256(own / "annotations" / "de" / "test.jsonl")


def test_wit_xm3600_and_xtd10(tmp_path: Path) -> None:
    write_lines(tmp_path / "wit" / "annotations" / "test_bg.jsonl", [{**WIT, "language": "bg"}])
    write_lines(tmp_path / "wit" / "annotations" / "val_en.jsonl", [{**WIT, "language": "en"}])
    assert told("wit", tmp_path) == {"bg": {WIT["image_url"]: ("karta",)}}
    assert list(told("wit", tmp_path, "dev")) == ["en"]

    both = {"de": {"caption": ["Haus", "ein Haus"]}, "quz": {"caption": ["wasi"]}}
    write_lines(tmp_path / "xm3600" / "captions.jsonl", [{"image/key": "a", **both}])
    assert told("xm3600", tmp_path) == {"de": {"a": ("Haus", "ein Haus")}, "qu": {"a": ("wasi",)}}

    own = tmp_path / "Cross-lingual-Test-Dataset-XTD10"
    write_text(own / "XTD10" / "test_image_names.txt", "COCO_val2014_000000000007.jpg\n")
    write_text(own / "STAIR" / "test_1kcaptions_jp.txt", "犬")
    assert told("xtd10", tmp_path) == {"ja": {"coco-7": ("犬",)}}


def test_multi30k_takes_five_descriptions_or_a_translation(tmp_path: Path) -> None:
    data = tmp_path / "multi30k-dataset" / "data"
    for task, name in ((1, "test_2016_flickr"), (2, "test_2016_images")):
        write_text(data / f"task{task}" / "image_splits" / f"{name}.txt", "1.jpg\n")
    for language in ("en", "fr"):
        write_text(data / "task1" / "raw" / f"test_2016_flickr.{language}", f"{language}\n")
    for number in range(1, 6):
        write_text(data / "task2" / "raw" / f"test_2016.{number}.en", f"en {number}\n")
    assert told("multi30k", tmp_path) == {"en": {"1": tuple(f"en {n}" for n in range(1, 6))}, "fr": {"1": ("fr",)}}
    asked = asked_in("multi30k", tmp_path, "test")["en"]
    assert (asked.split, len(asked.paths)) == ("test_2016_flickr", 5)
    assert asked.hashes == tuple(map(file_sha256, asked.paths))
    assert asked.sha256 == hashlib.sha256("".join(asked.hashes).encode()).hexdigest()
    (data / "task2" / "raw" / "test_2016.3.en").unlink()
    with pytest.raises(DataError) as caught:
        asked_in("multi30k", tmp_path, "test")
    assert caught.value.reason == "file_missing"
    lists = tmp_path / "lists"
    write_json(lists / "test_2016_flickr.cs.json", [{"image": "f/1.jpg", "caption": ["pes"]}])
    assert told("multi30k", lists) == {"cs": {"1": ("pes",)}}


def test_coco_is_put_together_of_three_projects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "COCO_TEST_IMAGES", 2)

    def name(number: int) -> str:
        return f"COCO_val2014_{number:012d}.jpg"

    images = [
        {
            "filename": name(n),
            "filepath": "val2014",
            "split": "val" if n == 4 else "test",
            "sentences": [{"raw": f"{n}"}],
        }
        for n in range(1, 5)
    ]
    write_json(tmp_path / "coco" / "dataset_coco.json", {"images": images})
    ja = {
        "images": [{"id": n, "file_name": name(n)} for n in range(1, 6)],
        "annotations": [{"image_id": n, "id": n, "caption": f"ja {n}"} for n in range(1, 6)],
    }
    write_json(tmp_path / "coco" / "stair_captions_v1.2_val.json", ja)
    zh = "".join(f"{name(n).removesuffix('.jpg')}#0\tzh {n}\n" for n in range(1, 6))
    write_text(tmp_path / "coco-cn" / "imageid.human-written-caption.txt", zh)
    write_text(tmp_path / "coco-cn" / "coco-cn_test.txt", f"{name(5).removesuffix('.jpg')}\n")
    assert told("mscoco", tmp_path) == {
        "en": {"coco-1": ("1",), "coco-2": ("2",)},
        "ja": {"coco-1": ("ja 1",), "coco-2": ("ja 2",)},
        "zh": {"coco-5": ("zh 5",)},
    }
    assert told("mscoco", tmp_path, "dev") == {"en": {"coco-4": ("4",)}, "ja": {"coco-4": ("ja 4",)}}
    write_json(tmp_path / "coco" / "ja.1k_test.json", [{"image": f"val2014/{name(3)}", "caption": ["published"]}])
    assert told("mscoco", tmp_path)["ja"] == {"coco-3": ("published",)}


def test_what_is_missing_or_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        asked_in("xm3600", tmp_path, "test")
    assert caught.value.where == str(tmp_path)
    for folder in ("one", "other"):
        write_lines(tmp_path / folder / "wit" / "annotations" / "test_bg.jsonl", [{**WIT, "language": "bg"}])
    assert list(told("wit", tmp_path)) == ["bg"], "the same file twice is one"
    write_lines(tmp_path / "other" / "wit" / "annotations" / "test_bg.jsonl", [{**WIT, "language": "bg"}] * 2)
    with pytest.raises(ConfigError) as caught:
        asked_in("wit", tmp_path, "test")
    assert "one/wit" in caught.value.got and "other/wit" in caught.value.got


def pairs(path: Path, language: str = "en") -> list[tuple[str, str]]:
    return [(row.id, caption) for row in read_pairs(path, language).rows for caption in row.captions]


def test_captions_to_train_on_are_known_by_the_files_path(tmp_path: Path) -> None:
    """Each caption is a row; the form, and of a file of all splits the training one, follow from the published name."""
    write_lines(tmp_path / "flickr30k" / "annotations" / "train_ann.jsonl", [row("1", "a dog", " ", "dogs")])
    assert pairs(tmp_path / "flickr30k" / "annotations" / "train_ann.jsonl") == [("1", "a dog"), ("1", "dogs")]
    write_lines(tmp_path / "mine.jsonl", [row("1", "a dog")])
    assert pairs(tmp_path / "mine.jsonl") == [("1", "a dog")]
    write_lines(tmp_path / "wit" / "annotations" / "train_en.jsonl", [{**WIT, "language": "en"}] * 2)
    assert pairs(tmp_path / "wit" / "annotations" / "train_en.jsonl") == [(WIT["image_url"], "karta")] * 2
    write_text(tmp_path / "data" / "task2" / "image_splits" / "train_images.txt", "1.jpg\n2.jpg\n")
    write_text(tmp_path / "data" / "task2" / "raw" / "train.4.de", "Hund\nHaus\n")
    assert pairs(tmp_path / "data" / "task2" / "raw" / "train.4.de", "de") == [("1", "Hund"), ("2", "Haus")]
    splits = [("train", 1), ("restval", 2), ("val", 3), ("test", 4)]
    images = [
        {"filename": f"COCO_val2014_{number:012d}.jpg", "split": split, "sentences": [{"raw": split}]}
        for split, number in splits
    ]
    write_json(tmp_path / "coco" / "dataset_coco.json", {"images": images})
    assert pairs(tmp_path / "coco" / "dataset_coco.json") == [("coco-1", "train"), ("coco-2", "restval")]


def test_what_is_tested_on_is_not_trained_on(tmp_path: Path) -> None:
    """Of a file of all splits, only what a list beside it says."""
    names = [f"COCO_val2014_{number:012d}" for number in (1, 2)]
    path = tmp_path / "coco-cn" / "imageid.human-written-caption.txt"
    write_text(path, "".join(f"{name}#0\tzh\n" for name in names))
    with pytest.raises(DataError) as caught:
        read_pairs(path, "zh")
    assert caught.value.reason == "file_missing"
    write_text(path.with_name("coco-cn_train.txt"), f"{names[1]}\n")
    assert pairs(path, "zh") == [("coco-2", "zh")]
    write_text(tmp_path / "flickr30k" / "results.token", "1.jpg#0\ta dog\n")
    with pytest.raises(DataError) as caught:
        read_pairs(tmp_path / "flickr30k" / "results.token", "en")
    assert caught.value.reason == "file_missing"
