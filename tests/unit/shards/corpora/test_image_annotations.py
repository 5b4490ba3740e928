"""Each annotation source on rows of its true format, with stand-in pictures under the names that the rows ask for."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from cclm.errors import ConfigError
from shards.corpora.image_corpus import IDS_REGIONS_LEFT_OUT
from shards.corpora.table import corpus_of
from tests.unit.shards.corpora.tiny_files import build, picture, write_pictures

COCO = {
    "annotations": [
        {"image_id": 391895, "id": 1, "caption": "A man with a red helmet."},
        {"image_id": 522418, "id": 2, "caption": "  A woman cutting a cake. "},
        {"image_id": 391895, "id": 3, "caption": "A man on a motorbike."},
        {"image_id": 777, "id": 4, "caption": "unlisted"},
        {"id": 5, "caption": "of nothing"},
    ],
    "licenses": [{"id": 3, "name": "Attribution License", "url": "http://creativecommons.org/licenses/by/2.0/"}],
    "images": [
        {"id": 391895, "file_name": "COCO_val2014_000000391895.jpg", "license": 3, "width": 16, "height": 12},
        {"id": 522418, "file_name": "COCO_val2014_000000522418.jpg", "width": 8, "height": 6},
        {"id": 184613, "file_name": "COCO_val2014_000000184613.jpg"},
    ],
}
COCO_CN = "COCO_val2014_000000391895#0\t一个戴着红色头盔的男人。\nCOCO_train2014_000000000009#0\t食物\nno tab\n"
INSTANCES = {
    "annotations": [
        {"id": 9, "image_id": 391895, "bbox": [2.0, 2.0, 4.0, 4.0], "category_id": 4, "segmentation": [[1.5, 2]]},
        {"id": 10, "image_id": 391895, "bbox": [15.5, 0.0, 0.5, 4.0], "category_id": 4},
    ],
    "categories": [{"id": 4, "name": "motorcycle"}],
}


@pytest.fixture
def coco(tmp_path: Path) -> Any:
    names = ["COCO_val2014_000000391895.jpg", "COCO_val2014_000000522418.jpg", "COCO_train2014_000000000009.jpg"]
    write_pictures(tmp_path / "pictures", names)
    (tmp_path / "captions.json.gz").write_bytes(gzip.compress(json.dumps(COCO).encode()))
    (tmp_path / "coco-cn.txt").write_text(COCO_CN, encoding="utf-8")
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    return {
        "captions": {"en": str(tmp_path / "captions.json.gz"), "zh": [str(tmp_path / "coco-cn.txt")]},
        "images": str(tmp_path / "pictures"),
    }


def test_coco_with_a_translation_and_objects(coco: Path, tmp_path: Path) -> None:
    made, refused = build("coco", **coco, instances=str(tmp_path / "instances.json"))
    records = {record.key: record for record in made}
    assert sorted(records) == ["coco-391895", "coco-522418", "coco-9"]
    first = records["coco-391895"]
    assert first.captions == {
        "en": ["A man with a red helmet.", "A man on a motorbike."],
        "zh": ["一个戴着红色头盔的男人。"],
    }
    assert (first.identity, first.licence, first.ids["image_id"]) == ("coco-391895", "Attribution License", "391895")
    assert [(region.box, region.captions) for region in first.regions] == [
        ((1.0, 1.0, 2.0, 2.0), {"en": ["motorcycle"]})
    ], "the stored picture is half the annotated one"
    assert first.ids[IDS_REGIONS_LEFT_OUT] == "1"
    assert records["coco-9"].captions == {"zh": ["食物"]}
    assert refused == {"image_unlisted": 1, "captions_missing": 1, "line_broken": 2}


def test_coco_by_id_when_its_list_is_of_other_pictures(coco: Path) -> None:
    made, refused = build("coco", **coco, image_name="COCO_val2014_{id:012d}.jpg")
    assert {record.key for record in made} == {"coco-391895", "coco-522418"}
    assert refused == {"image_missing": 2, "captions_missing": 1, "line_broken": 2}


def test_coco_that_breaks_off(coco: Path, tmp_path: Path) -> None:
    text = json.dumps(COCO)
    (tmp_path / "captions.json.gz").write_bytes(gzip.compress(text[: text.index("A man on")].encode()))
    made, refused = build("coco", **coco, image_name="COCO_val2014_{id:012d}.jpg")
    assert len(made) == 2 and refused == {"file_broken": 1, "line_broken": 1, "image_missing": 1}


def test_a_folder_of_pictures_that_is_not_there_is_told_at_once(coco: Path) -> None:
    with pytest.raises(ConfigError, match="expected a folder of images, got no such folder"):
        corpus_of("coco", coco | {"images": "/nowhere"}).parts()


def test_flickr30k_in_its_three_forms(tmp_path: Path) -> None:
    names = ["1000092795.jpg", "10002456.jpg", "COCO_val2014_000000414071.jpg"]
    write_pictures(tmp_path / "flickr", names[:2])
    write_pictures(tmp_path / "coco", names[2:])
    (tmp_path / "a.token").write_text("1000092795.jpg#0\tTwo men.\n1000092795.jpg#1\tTwo young guys.\n")
    (tmp_path / "a.csv").write_text(
        "image_name| comment_number| comment\n10002456.jpg| 0| Several men | in hats.\n10002456.jpg| 4   A dog\n"
    )
    rows = [
        {"sentences": ["Der Mann."], "id": "1000092795", "img_path": "1000092795.jpg"},
        {"sentences": ["Ein Hund."], "id": 414071, "img_path": "COCO_val2014_000000414071.jpg"},
        {"sentences": [""], "id": "7", "img_path": "10002456.jpg"},
        {"sentences": "x"},
    ]
    (tmp_path / "de.jsonl").write_text("\n".join(map(json.dumps, rows)))
    captions = {"en": [str(tmp_path / "a.*")], "de": str(tmp_path / "de.jsonl")}
    images = [str(tmp_path / "flickr"), str(tmp_path / "coco")]
    made, refused = build("flickr30k", captions=captions, images=images)
    captioned = {record.identity: record.captions for record in made}
    assert captioned == {
        "1000092795": {"en": ["Two men.", "Two young guys."], "de": ["Der Mann."]},
        "10002456": {"en": ["Several men | in hats."]},
        "COCO_val2014_000000414071": {"de": ["Ein Hund."]},
    }
    assert len(made) == 3 and refused == {"line_broken": 2}
    made, refused = build("flickr30k", captions={"de": captions["de"]}, images=images)
    assert len(made) == 2 and refused == {"captions_empty": 1, "line_broken": 1}


def test_multi30k_lines(tmp_path: Path) -> None:
    names = ["1007129816.jpg", "1009434119.jpg", "101362133.jpg"]
    write_pictures(tmp_path / "pictures", names)
    (tmp_path / "names.txt").write_text("\n".join(names))
    (tmp_path / "t.1.en.gz").write_bytes(gzip.compress(b"A man in an orange hat.\r\nA terrier.\nA girl.\n"))
    (tmp_path / "t.2.en.gz").write_bytes(gzip.compress(b"A man wears a hat.\nA dog.\nA kid.\n"))
    (tmp_path / "t.fr").write_text("Un homme\xa0avec\x85 un chapeau.\n\n", encoding="utf-8")
    options = {
        "names": str(tmp_path / "names.txt"),
        "captions": {"en": str(tmp_path / "t.*.en.gz"), "fr": str(tmp_path / "t.fr")},
        "images": str(tmp_path / "pictures"),
    }
    made, refused = build("aligned_lines", **options)
    assert [record.captions for record in made] == [
        {"en": ["A man in an orange hat.", "A man wears a hat."], "fr": ["Un homme\xa0avec\x85 un chapeau."]},
        {"en": ["A terrier.", "A dog."]},
    ]
    assert refused == {"line_unmatched": 1} and made[0].ids["image"] == names[0]


REGIONS = [
    {
        "id": 1,
        "regions": [
            {"region_id": 1382, "image_id": 1, "phrase": "the clock is green", "x": 4, "y": 0, "width": 8, "height": 6},
            {"region_id": 1383, "image_id": 1, "phrase": "shade is cast", "x": -2, "y": 8, "width": 6, "height": 90},
            {"region_id": 1384, "image_id": 1, "phrase": "gone", "x": 16, "y": 0, "width": 5, "height": 5},
        ],
    },
    {"id": 3, "regions": []},
    {"id": 4, "regions": [{"region_id": 9}]},
]
OBJECTS = [
    {
        "image_id": 1,
        "attributes": [
            {"object_id": 5, "names": ["clock"], "attributes": ["green", "tall"], "x": 2, "y": 2, "w": 4, "h": 4}
        ],
    },
    {"image_id": 2, "attributes": [{"object_id": 6, "names": ["road"], "x": 0, "y": 0, "w": 4, "h": 4}]},
]
IMAGE_DATA = [
    {"image_id": 1, "width": 16, "height": 12, "coco_id": 391895, "url": "https://x/1.jpg"},
    {"image_id": 2, "width": 8, "height": 6, "coco_id": None},
    {"image_id": 3, "width": 8, "height": 6},
]


def test_visual_genome_regions_in_pixels_of_the_stored_picture(tmp_path: Path) -> None:
    write_pictures(tmp_path / "VG_100K", ["1.jpg"])
    write_pictures(tmp_path / "VG_100K_2", ["2.jpg"])
    for name, document in (("regions", REGIONS), ("attributes", OBJECTS), ("image_data", IMAGE_DATA)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    (tmp_path / "zh.tsv").write_text("1382\t时钟是绿色的\n5\t绿钟\n99\t无\n", encoding="utf-8")
    made, refused = build(
        "visual_genome",
        images=[str(tmp_path / "VG_100K"), str(tmp_path / "VG_100K_2")],
        image_data=str(tmp_path / "image_data.json"),
        regions=str(tmp_path / "regions.json"),
        objects=str(tmp_path / "attributes.json"),
        region_translations=[{"path": str(tmp_path / "zh.tsv"), "language": "zh", "columns": ["id", "text"]}],
    )
    first, second = sorted(made, key=lambda record: record.key)
    assert sorted((region.box, dict(region.captions)) for region in first.regions) == [
        ((0.0, 4.0, 2.0, 2.0), {"en": ["shade is cast"]}),
        ((1.0, 1.0, 2.0, 2.0), {"en": ["green clock", "tall clock"], "zh": ["绿钟"]}),
        ((2.0, 0.0, 4.0, 3.0), {"en": ["the clock is green"], "zh": ["时钟是绿色的"]}),
    ]
    assert first.ids == {"image_id": "1", "coco_id": "391895", IDS_REGIONS_LEFT_OUT: "1"}
    assert first.captions["en"] == ["the clock is green", "shade is cast", "gone"] and first.identity == "coco-391895"
    assert second.captions == {"en": ["road"]} and second.identity == "vg-2"
    assert refused == {"captions_missing": 1, "line_broken": 1, "translation_unmatched": 1}


def published(colour: Any = 0, **fields: Any) -> Any:
    return {"binary": base64.b64encode(picture(20, 10, colour)).decode()} | fields


def test_published_lines_with_captions_and_regions(tmp_path: Path) -> None:
    elements = [
        {"caption": {"en": "dog", "zh": "狗"}, "bb": [1, 2, 10, 5], "attributes": {"en": "brown"}},
        {"caption": [{"en": "tail"}], "bb": [30, 30, 5, 5]},
    ]
    lines = [
        json.dumps(published(caption={"en": "a dog", "zh": "一只狗"}, elems=elements)),
        json.dumps(published(caption=[{"en": "one dog"}, {"en": "a dog", "de": "ein Hund"}])),
        json.dumps(published(colour=9, elems=elements)),
        json.dumps({"binary": "****", "caption": {"en": "x"}}),
        json.dumps(published(caption={"en": " "})),
        json.dumps({"caption": {"en": "x"}}),
        json.dumps(published(caption={"en": "x"}, elems=[{"bb": [1]}])),
        "{",
    ]
    path = tmp_path / "cc3m" / "part-00000"
    path.parent.mkdir()
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    made, refused = build("published_images", path=str(path.parent), source="cc3m", licence="CC0-1.0")
    assert [record.captions for record in made] == [
        {"en": ["a dog"], "zh": ["一只狗"]},
        {"en": ["one dog", "a dog"], "de": ["ein Hund"]},
        {"en": ["dog", "tail"], "zh": ["狗"]},
    ]
    assert [(region.box, region.captions, region.attributes) for region in made[0].regions] == [
        ((1.0, 2.0, 10.0, 5.0), {"en": ["dog"], "zh": ["狗"]}, {"en": ["brown"]})
    ], "training decides how attributes are said"
    assert made[0].identity == made[1].identity != made[2].identity, "the same picture is not its own negative"
    assert made[0].image == picture(20, 10) and made[0].licence == "CC0-1.0"
    assert refused == {"base64_broken": 1, "captions_empty": 1, "image_missing": 1, "line_broken": 2}
    chosen, _ = build("published_images", path=str(path), source="cc3m", languages=["zh"])
    assert [record.captions for record in chosen] == [{"zh": ["一只狗"]}, {"zh": ["狗"]}]


def test_published_lines_may_hold_paths_and_are_cut_into_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "pictures", ["a/1.jpg", "a/2.jpg"])
    lines = [{"binary": f"a/{n}.jpg", "caption": {"en": f"{n}" * 40}} for n in (1, 2, 3)]
    (tmp_path / "lines").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {"path": str(tmp_path / "lines"), "source": "x", "image_folder": str(tmp_path / "pictures")}
    whole = build("published_images", **options)
    assert len(whole[0]) == 2 and whole[1] == {"image_missing": 1}
    for part_bytes in (1, 50, 100, 101):
        monkeypatch.setattr("shards.corpora.published_lines.PART_BYTES", part_bytes)
        assert len(corpus_of("published_images", options).parts()) > 1
        assert build("published_images", **options) == whole
    (tmp_path / "lines.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(ConfigError, match="expected a file that is not compressed"):
        corpus_of("published_images", options | {"path": str(tmp_path / "lines.gz")}).parts()


def test_translations_are_joined_by_id_and_unmatched_ones_are_counted(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "de.tsv").write_text("id\ttext\n391895\tEin Mann.\n391895\tMann mit Helm.\n5\tniemand\nkaputt\n")
    rows = [
        {"image_id": 522418, "caption": {"fr": "Une femme.", "cs": ["Žena."]}},
        {"image_id": 1, "caption": {"fr": 2}},
    ]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
    translations = [
        {"path": str(tmp_path / "de.tsv"), "language": "de"},
        {"path": str(tmp_path / "more.jsonl"), "id": "image_id", "text": "caption"},
    ]
    made, refused = build("coco", **coco, translations=translations)
    captions = {record.key: record.captions for record in made}
    assert captions["coco-391895"]["de"] == ["Ein Mann.", "Mann mit Helm."]
    assert captions["coco-522418"] == {"en": ["  A woman cutting a cake. "], "fr": ["Une femme."], "cs": ["Žena."]}
    assert captions["coco-9"] == {"zh": ["食物"]}
    assert refused == {"translation_unmatched": 1, "image_unlisted": 1, "captions_missing": 1, "line_broken": 4}
    monkeypatch.setattr("shards.parts.grouped.__defaults__", (1, 0))
    spilled = build("coco", **coco, translations=translations)
    assert ({record.key: record.captions for record in spilled[0]}, spilled[1]) == (captions, refused)


def test_a_translation_file_without_its_columns(coco: Path, tmp_path: Path) -> None:
    (tmp_path / "de.tsv").write_text("image\ttext\n1\tx\n")
    with pytest.raises(ConfigError, match=r"expected the columns id, text, got image, text \(missing: id\)"):
        build("coco", **coco, translations=[{"path": str(tmp_path / "de.tsv"), "language": "de"}])
