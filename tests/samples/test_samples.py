"""Every image-caption and parallel-text file of a folder of real rows, read by the sources and held against its counts.

Pictures are stand-ins under the names that the rows ask for.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.samples.sets import (
    ALIGNED,
    NO_DATA,
    QUESTIONS,
    READ,
    STATEMENTS,
    captioned,
    document,
    folder,
    parameters,
    samples,
    splits,
)
from tests.unit.shards.corpora.tiny_files import build, picture


def by_name(sample: Any) -> Any:
    return str(sample.path.relative_to(folder()))


def stand_ins(where: Path, names: set[str]) -> str:
    """Write one picture and link it to every name."""
    where.mkdir(parents=True, exist_ok=True)
    first = where / ".stand-in.jpg"
    first.write_bytes(picture(4, 4))
    for name in names:
        os.link(first, where / name)
    return str(where)


def texts_of(records: Any, language: str | None = None) -> Any:
    return [
        text for record in records for of, texts in record.captions.items() if language in (None, of) for text in texts
    ]


def rows_of(path: Path) -> Any:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]


@pytest.mark.parametrize("sample", parameters(samples(*READ, *STATEMENTS, *QUESTIONS), by_name))
def test_the_files_are_those_that_were_counted(sample: Any) -> None:
    assert hashlib.sha256(sample.path.read_bytes()).hexdigest() == sample.entry["sha256"]


@pytest.mark.parametrize(
    "name", parameters(sorted({entry["set"] for entry in document().get("files", {}).values()}), str)
)
def test_every_set_is_read(name: Any) -> None:
    assert name in (*READ, *STATEMENTS, *QUESTIONS, *NO_DATA), f"no reader reads the set {name}"


@pytest.mark.parametrize("sample", parameters(captioned("xFlickr&CO", "Flickr30k"), by_name))
def test_flickr30k_and_xflickrco(sample: Any, tmp_path: Path) -> None:
    names = {row["img_path"] for row in rows_of(sample.path)}
    coco = {name for name in names if "COCO" in name}
    images = [stand_ins(tmp_path / "flickr", names - coco), stand_ins(tmp_path / "coco", coco)]
    made, refused = build("flickr30k", captions={sample.language: str(sample.path)}, images=images)
    assert len(made) == sample.usable["cclm_images"]
    texts = texts_of(made, sample.language)
    assert len(texts) == sample.usable["cclm_captions"]
    blank = 1 if sample.counts["empty_captions"] else 0
    assert len(set(texts)) == sample.counts["unique_captions"] - blank
    assert len(made) + sum(refused.values()) == sample.counts["unique_images"]
    assert set(refused) <= {"captions_empty"}
    assert sum("COCO" in record.ids["image"] for record in made) <= sample.counts["coco_rows"]


@pytest.mark.parametrize("sample", parameters(captioned("WIT"), by_name))
def test_wit(sample: Any, tmp_path: Path) -> None:
    urls = {row["image_url"] for row in rows_of(sample.path)}
    encoded = base64.b64encode(picture(4, 4)).decode()
    (tmp_path / "pixels").write_text("".join(f"{url}\t{encoded}\n" for url in sorted(urls)), encoding="utf-8")
    made, refused = build("wit", path=str(sample.path), pixels=str(tmp_path / "pixels"))
    assert len(made) == sample.usable["cclm_images_by_url"]
    assert len(texts_of(made)) == sample.usable["cclm_captions"]
    assert len(texts_of(made)) + sum(refused.values()) == sample.entry["rows"]
    assert {language for record in made for language in record.captions} == set(
        sample.entry["facts"]["language_values"]
    )
    assert len(set(texts_of(made))) == sample.counts.get("unique_captions", len(set(texts_of(made))))
    most = max(sum(map(len, record.captions.values())) for record in made)
    assert most == sample.counts.get("max_captions_per_image", most)


@pytest.mark.parametrize("sample", parameters(captioned("MSCOCO-it"), by_name))
def test_mscoco_it_by_id_and_by_its_list(sample: Any, tmp_path: Path) -> None:
    """counts.json compares ids as JSON has them, where 169356 is not "169356"; the source compares them as numbers.

    So a file that writes one id in both ways has fewer pictures than counted, and more captions find their picture.
    """
    coco = json.loads(gzip.decompress(sample.path.read_bytes()))
    (prefix,) = sample.entry["facts"]["prefixes"]
    template = f"{prefix}_{{id:012d}}.jpg"
    usable, counts = sample.usable, sample.counts
    as_written = [annotation["image_id"] for annotation in coco["annotations"]]
    listed_as_written = {image["id"] for image in coco["images"]}
    assert len(set(as_written)) == usable["images_by_image_id"]
    assert sum(identity in listed_as_written for identity in as_written) == usable["captions_with_listed_image"]
    numbers, listed = [int(identity) for identity in as_written], {int(identity) for identity in listed_as_written}

    names = {image["file_name"] for image in coco["images"]} | {template.format(id=number) for number in numbers}
    options = {"captions": {sample.language: str(sample.path)}, "images": stand_ins(tmp_path / "images", names)}
    made, refused = build("coco", **options, image_name=template)
    assert len(texts_of(made)) == usable["captions_by_image_id"]
    assert len(made) == len(set(numbers)) <= usable["images_by_image_id"]
    assert refused.get("captions_missing", 0) == len(listed - set(numbers)) <= counts["images_without_annotation"]
    if len(set(numbers)) == len(set(as_written)):
        per_image = [len(texts) for record in made for texts in record.captions.values()]
        expected = {int(size): number for size, number in counts["captions_per_image"].items()}
        assert {size: per_image.count(size) for size in set(per_image)} == expected

    made, refused = build("coco", **options)
    assert len(made) == len(listed & set(numbers)) >= usable["images_listed_and_annotated"]
    assert len(texts_of(made)) == sum(n in listed for n in numbers) >= usable["captions_with_listed_image"]
    assert refused.get("image_unlisted", 0) == len(set(numbers) - listed)


@pytest.mark.parametrize("sample", parameters(captioned("COCO-CN ext"), by_name))
def test_coco_cn(sample: Any, tmp_path: Path) -> None:
    lines = sample.path.read_text(encoding="utf-8").split("\n")
    names = {line.split("#")[0] for line in lines if line}
    images = stand_ins(tmp_path, {name if name.endswith(".jpg") else f"{name}.jpg" for name in names})
    made, refused = build("coco", captions={sample.language: str(sample.path)}, images=images)
    assert (len(texts_of(made)), len(made)) == (sample.usable["captions"], sample.usable["images"])
    assert not refused


def aligned(set_name: str, split: str) -> Any:
    """Return the list of pictures of a split and its caption files by language."""
    (names,) = [one for one in samples(set_name) if not one.entry["languages"] and one.entry["split"] == split]
    files = {}
    for one in sorted(captioned(set_name), key=lambda one: one.path):
        if one.entry["split"] == split:
            files.setdefault(one.language, []).append(one)
    return names, files


@pytest.mark.parametrize("split", parameters(splits(*ALIGNED), " ".join))
def test_lines_beside_a_list_of_pictures(split: Any, tmp_path: Path) -> None:
    names, files = aligned(*split)
    images = stand_ins(tmp_path, {name for name in names.path.read_text(encoding="utf-8").split("\n") if name})
    captions = {language: [str(one.path) for one in of_one] for language, of_one in files.items()}
    made, refused = build("aligned_lines", names=str(names.path), captions=captions, images=images)
    assert len(made) == names.usable["images"] and not refused
    for language, of_one in files.items():
        assert len(texts_of(made, language)) == sum(one.usable["captions"] for one in of_one)
        for number, one in enumerate(of_one):
            if not one.counts["empty"]:
                texts = [record.captions[language][number] for record in made]
                assert len(set(texts)) == one.counts["unique_captions"]
                assert not any(text.endswith("\r") for text in texts)


@pytest.mark.parametrize("split", parameters(splits("Multi30K task 1"), " ".join))
def test_translated_captions_as_parallel_text(split: Any) -> None:
    _, files = aligned(*split)
    anchor = "en" if "en" in files else min(files)
    made, refused = build("moses", files={lang: str(of[0].path) for lang, of in files.items()}, anchor=anchor)
    assert not refused
    for language, (sample,) in files.items():
        pairs = [pair for group in made for pair in group if pair.lang_b == language]
        if language != anchor:
            assert len(pairs) == sample.usable["captions"]
            assert len({pair.text_b for pair in pairs}) == sample.counts["unique_captions"]


@pytest.mark.parametrize(
    "split", parameters(sorted(document().get("expected_by_protocol", {}).get("Multi30K", {})), str)
)
def test_multi30k_as_the_protocol_counts_it(split: Any, tmp_path: Path) -> None:
    expected = document()["expected_by_protocol"]["Multi30K"][split]
    if "captions" not in expected:
        pytest.skip(f"{split}: counted file by file above")
    names, single = aligned("Multi30K task 1", split)
    _, several = aligned("Multi30K task 2", split.removesuffix("_flickr"))
    captions = {
        language: [str(one.path) for one in several.get(language, single.get(language, ()))]
        for language in expected["captions"]
    }
    images = stand_ins(tmp_path, {name for name in names.path.read_text(encoding="utf-8").split("\n") if name})
    made, _ = build("aligned_lines", names=str(names.path), captions=captions, images=images)
    assert len(made) == expected["images"]
    assert {language: len(texts_of(made, language)) for language in captions} == expected["captions"]
