"""Retrieval sets: Flickr30k and xFlickr&CO, Multi30K and XTD10, COCO and its like, WIT, XM3600."""

from __future__ import annotations

import gzip
import weakref
from pathlib import Path
from typing import Any

import pytest

from cclm.annotations.captions import (
    multi30k_paths,
    read_aligned,
    read_coco,
    read_flickr30k,
    read_karpathy,
    read_wit,
    read_xm3600,
)
from cclm.annotations.reading import Captioned, read_captions
from cclm.annotations.rows import AnnotationFile, CaptionRow
from cclm.errors import DataError
from tests.unit.annotations.annotation_files import broken_at, write_json, write_lines, write_text

WIT: dict[str, Any] = {"language": "bg", "image_url": "https://a/%C3%A1.svg", "caption_reference_description": "карта"}


def captions(file: AnnotationFile[CaptionRow]) -> dict[str, tuple[str, ...]]:
    return {row.id: row.captions for row in file.rows}


def test_xflickrco_has_both_image_sets_and_a_blank_caption(tmp_path: Path) -> None:
    rows = [
        {"sentences": ["Ein Hund."], "id": "10", "img_path": "10.jpg"},
        {"sentences": ["Ein Zug."], "id": 414071, "img_path": "COCO_val2014_000000414071.jpg"},
        {"sentences": [""], "id": 7, "img_path": "COCO_val2014_000000000007.jpg"},
        {"sentences": ["Zwei.", " ", "Drei."], "id": "11", "img_path": "11.jpg"},
    ]
    file = read_flickr30k(write_lines(tmp_path / "test.jsonl", rows), "de")
    assert captions(file) == {"10": ("Ein Hund.",), "coco-414071": ("Ein Zug.",), "11": ("Zwei.", "Drei.")}
    assert file.dropped == {"blank_caption": 2, "no_caption": 1} and file.num_entries == 4


def test_captions_with_numbers_and_published_lists(tmp_path: Path) -> None:
    tokens = write_text(tmp_path / "results.token", "1.jpg#0\tA dog .\n2.jpg#0\tTwo .\n1.jpg#1\tIt runs .\n")
    assert captions(read_flickr30k(tokens, "en")) == {"1": ("A dog .", "It runs ."), "2": ("Two .",)}
    without_suffix = write_text(tmp_path / "coco-cn.txt", "COCO_val2014_000000000009#0\t一只狗\n")
    (row,) = read_flickr30k(without_suffix, "zh").rows
    assert (row.id, row.image) == ("coco-9", "COCO_val2014_000000000009.jpg")
    rows = [{"image": "f/1.jpg", "caption": "One.", "image_id": 0}, {"image": "f/1.jpg", "caption": ["Two.", "Three."]}]
    assert captions(read_flickr30k(write_json(tmp_path / "x.json", rows), "en")) == {"1": ("One.", "Two.", "Three.")}


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        (
            "t.jsonl",
            '{"sentences": ["a"], "img_path": "1.jpg"}\n{"sentences": "a", "img_path": "1.jpg"}\n',
            "t.jsonl:2",
        ),
        ("t.jsonl", '{"sentences": ["a"]}\n', "t.jsonl:1"),
        ("t.token", "1.jpg#0\ta\n1.jpg a\n", "t.token:2"),
        ("t.json", '[{"image": "1.jpg", "caption": 7}]', "t.json:1"),
    ],
)
def test_captions_that_are_wrong_are_named_by_their_line(name: str, text: str, place: str, tmp_path: Path) -> None:
    assert broken_at(read_flickr30k, write_text(tmp_path / name, text), "en") == ("line_broken", place)


def test_entries_are_read_one_after_another(tmp_path: Path) -> None:
    """Files have millions of them: of those before, the captions alone are kept."""
    seen, most = list[weakref.ref[Captioned]](), 0

    def make(_: str, number: int) -> Captioned:
        nonlocal most
        most = max(most, sum(one() is not None for one in seen))
        item = Captioned(id=str(number), image=f"{number}.jpg", captions=["a"])
        seen.append(weakref.ref(item))
        return item

    read = read_captions(tmp_path, "en", ((f"file:{number}", number) for number in range(50)), make)
    assert read.num_entries == len(read.rows) == 50 and most <= 1


def test_karpathys_splits(tmp_path: Path) -> None:
    images = [
        {"filename": f"{n}.jpg", "filepath": "val2014", "split": split, "sentences": [{"raw": f"caption {n}"}]}
        for n, split in enumerate(["train", "restval", "val", "test", "test"])
    ]
    path = write_json(tmp_path / "dataset_coco.json", {"images": images})
    assert [len(read_karpathy(path, "en", split=split).rows) for split in ("train", "val", "test")] == [2, 1, 2]
    test = read_karpathy(path, "en")
    assert test.rows[0].image == "val2014/3.jpg" and test.dropped == {"other_split": 3}


def test_aligned_lines_find_their_list_and_join_several_files(tmp_path: Path) -> None:
    write_text(tmp_path / "task2/image_splits/test_2016_images.txt", "1.jpg\n2.jpg#0\n")
    files = [tmp_path / f"task2/raw/test_2016.{number}.de.gz" for number in (1, 2)]
    for path, text in zip(files, ("Ein\u2028Hund\nZwei\n", "\nNoch einer\r\n"), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()))
    file = read_aligned(files, "de")
    assert captions(file) == {"1": ("Ein\u2028Hund",), "2": ("Zwei", "Noch einer")}
    assert file.rows[1].image == "2.jpg" and file.dropped == {"blank_caption": 1}


def of_multi30k(folder: Path, language: str) -> AnnotationFile[CaptionRow]:
    return read_aligned(multi30k_paths(folder, language, "test_2016_flickr"), language)


def test_multi30k_as_the_protocol_takes_it(tmp_path: Path) -> None:
    """Five descriptions where there are, else the translation; not some of the five."""
    data = tmp_path / "data"
    write_text(data / "task1/image_splits/test_2016_flickr.txt", "1.jpg\n")
    write_text(data / "task2/image_splits/test_2016_images.txt", "1.jpg\n")
    write_text(data / "task1/raw/test_2016_flickr.fr", "Un chien.\n")
    write_text(data / "task1/raw/test_2016_flickr.de", "Übersetzt.\n")
    for number in range(1, 6):
        write_text(data / f"task2/raw/test_2016.{number}.de", f"Satz {number}.\n")
    assert captions(of_multi30k(tmp_path, "fr")) == {"1": ("Un chien.",)}
    assert captions(of_multi30k(tmp_path, "de")) == {"1": tuple(f"Satz {number}." for number in range(1, 6))}
    (data / "task2/raw/test_2016.3.de").unlink()
    with pytest.raises(DataError) as found:
        of_multi30k(tmp_path, "de")
    assert found.value.reason == "file_missing"
    assert not multi30k_paths(tmp_path, "cs", "test_2016_flickr")


def test_xtd10_is_named_jp_and_needs_no_last_newline(tmp_path: Path) -> None:
    write_text(
        tmp_path / "XTD10/test_image_names.txt", "COCO_train2014_000000000001.jpg\nCOCO_val2014_000000000002.jpg\n"
    )
    file = read_aligned(write_text(tmp_path / "STAIR/test_1kcaptions_jp.txt", "一\r\n二"), "jp")
    assert captions(file) == {"coco-1": ("一",), "coco-2": ("二",)} and file.language == "ja"


def test_files_of_other_lengths_and_without_a_list(tmp_path: Path) -> None:
    path = write_text(tmp_path / "XTD10/test_1kcaptions_ko.txt", "a\nb\n")
    with pytest.raises(DataError) as found:
        read_aligned(path, "ko")
    assert found.value.reason == "file_missing"
    write_text(tmp_path / "XTD10/test_image_names.txt", "1.jpg\n")
    assert broken_at(read_aligned, path, "ko") == ("line_unmatched", "test_1kcaptions_ko.txt:2")


def coco(ids: list[Any], listed: list[int], name: str = "COCO_val2014_{:012d}.jpg") -> dict[str, Any]:
    return {
        "annotations": [{"image_id": i, "id": n, "caption": f"caption {n}"} for n, i in enumerate(ids)],
        "images": [{"id": i, "file_name": name.format(i)} for i in listed],
    }


def test_coco_joins_by_id_also_where_ids_are_texts(tmp_path: Path) -> None:
    file = read_coco(write_json(tmp_path / "c.json", coco([5, "5", 7], [5, 7])), "it")
    assert captions(file) == {"coco-5": ("caption 0", "caption 1"), "coco-7": ("caption 2",)}


def test_coco_builds_names_that_are_not_listed(tmp_path: Path) -> None:
    """As in MSCOCO-it's validated set, of whose images few are listed: both denominators."""
    path = write_json(tmp_path / "c.json", coco([5, 6, 6], [5]))
    assert read_coco(path, "it").rows[1].image == "COCO_val2014_000000000006.jpg"
    listed = read_coco(path, "it", only_listed=True)
    assert len(listed.rows) == 1 and listed.dropped == {"image_unlisted": 2}
    odd = write_json(tmp_path / "odd.json", coco([5, 6], [5], "{}.jpg"))
    assert read_coco(odd, "it").dropped == {"image_unlisted": 1}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"annotations": [{"image_id": 5, "caption": "a"}, {"image_id": 5}]}, "c.json:annotations[1]"),
        ({"annotations": [7]}, "c.json:annotations[0]"),
        ({"annotations": None}, "c.json"),
        ({"images": [{"id": 5}]}, "c.json:images[0]"),
    ],
)
def test_coco_that_is_wrong_is_named_by_its_place(change: dict[str, Any], place: str, tmp_path: Path) -> None:
    path = write_json(tmp_path / "c.json", {**coco([5], [5]), **change})
    assert broken_at(read_coco, path, "it")[1] == place


def test_wit_is_grouped_by_url(tmp_path: Path) -> None:
    other = {**WIT, "image_url": "https://a/á.svg", "caption_reference_description": "."}
    blank = {**WIT, "image_url": "https://b", "caption_reference_description": " "}
    rows = [WIT, other, {**WIT, "caption_reference_description": "two\nlines"}, blank]
    file = read_wit(write_lines(tmp_path / "test_bg.jsonl", rows), "bg")
    assert captions(file) == {"https://a/%C3%A1.svg": ("карта", "two\nlines"), "https://a/á.svg": (".",)}
    assert file.dropped == {"blank_caption": 1, "no_caption": 1}


def test_wit_in_another_language_is_an_error(tmp_path: Path) -> None:
    assert broken_at(read_wit, write_lines(tmp_path / "t.jsonl", [WIT]), "el") == ("line_broken", "t.jsonl:1")


def test_xm3600_by_language(tmp_path: Path) -> None:
    rows = [
        {"image/key": "a1", "en": {"caption": ["one", "two"]}, "quz": {"caption": ["huk", "iskay"]}},
        {"image/key": "b2", "en": {"caption": ["three"]}},
    ]
    path = write_lines(tmp_path / "captions.jsonl", rows)
    assert captions(read_xm3600(path, "en")) == {"a1": ("one", "two"), "b2": ("three",)}
    quechua = read_xm3600(path, "quz")
    assert (quechua.rows[0].image, quechua.language) == ("a1.jpg", "qu")
    assert quechua.dropped == {"no_caption_in_language": 1}
