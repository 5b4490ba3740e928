"""Looking at sets: statistics with lengths and sizes, pages that stand alone, what two sets differ in."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cclm.errors import ConfigError
from cclm.types import ImageTextRecord, Region, TextPair, View
from shards.__main__ import main
from shards.build import build_sets, plan_set
from shards.difference import difference
from shards.parts import LazyRecord
from shards.recipe import SetRecipe
from shards.stats import class_name, class_of, direction, measure_set, preview_page, spread, statistics
from tests.image_files import encoded
from tests.unit.shards.tiny_corpora import one_part, text_plan
from tests.unit.shards.tiny_pictures import drawing


def record(number: int) -> ImageTextRecord:
    return ImageTextRecord(
        key=f"k{number}",
        image=encoded(drawing(number, (100 + 30 * number, 100)), "JPEG"),
        image_format="jpg",
        captions={"en": [f"thing <{number}>"], "he": ["כלב על ספה"]},
        source="pen",
        licence="CC0-1.0",
        regions=(Region(box=(10, 20, 30.5, 40), captions={"ar": ["كلب"]}),) if number == 1 else (),
    )


def build(folder: Path, records: Any) -> Any:
    recipe = SetRecipe(view=View.IMAGE_TEXT, corpus="drawn", num_shards=2)
    lazy_records = [LazyRecord(key=each.key, source="pen", make=partial(replace, each)) for each in records]
    build_sets([plan_set("pictures", recipe, one_part(lazy_records))], folder)
    return folder / "pictures"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("sets")
    build(folder, [record(number) for number in range(5)])
    build_sets([text_plan()], folder)
    return folder


def run(*arguments: object) -> tuple[int, str]:
    out = io.StringIO()
    status = main([str(argument) for argument in arguments], Console(file=out, width=160))
    return status, out.getvalue()


def test_classes_double() -> None:
    assert [class_of(value) for value in (0, 1, 2, 3, 4, 7, 8, 1023, 1024)] == [0, 1, 2, 2, 4, 4, 8, 512, 1024]
    assert [class_name(lower) for lower in (0, 1, 2, 1024)] == ["0", "1", "2-3", "1,024-2,047"]


@pytest.mark.parametrize("most", [1, 3, 7, 100])
def test_samples_are_evenly_spread(most: int) -> None:
    sizes = [3, 0, 1, 6]
    places = list(spread(sizes, most))
    flat = [sum(sizes[:shard]) + sample for shard, sample in places]
    assert len(flat) == min(most, 10) == len(set(flat))
    assert flat == [10 * number // len(flat) for number in range(len(flat))]
    assert all(sample < sizes[shard] for shard, sample in places)
    assert list(spread([], 5)) == []


def test_measures_of_pictures_and_pairs(folder: Path) -> None:
    measures = measure_set(folder / "pictures", 100)
    assert measures["measured"] == 5
    assert measures["short_side"] == {64: 5} and measures["aspect_percent"] == {64: 1, 128: 4}
    assert measures["captions"] == {2: 5} and sum(measures["file_bytes"].values()) == 5
    assert measures["characters"] == {"en": {8: 5}, "he": {8: 5}}
    texts = measure_set(folder / "texts", 4)
    assert (texts["measured"], texts["pairs"], texts["characters"]["he"]) == (4, {2: 4}, {4: 4})


def test_a_broken_sample_is_counted(tmp_path: Path) -> None:
    pictures = build(tmp_path, [record(number) for number in range(3)])
    tar = pictures / "pictures-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"thing", b"thong"))
    assert measure_set(pictures, 10)["broken"] == {"checksum": 1}
    assert "3 samples measured, 1 broken (checksum)" in run("stats", pictures)[1]


def test_statistics_with_tables_json_and_a_page(folder: Path, tmp_path: Path) -> None:
    status, text = run("stats", folder, "--json", tmp_path / "s.json", "--html", tmp_path / "s.html", "--samples", 4)
    assert status == 0
    for words in (
        "pictures: 4 samples measured",
        "short_side",
        "█",
        "texts: characters of a text",
        "needs no other file",
    ):
        assert words in text
    numbers = json.loads((tmp_path / "s.json").read_text("utf-8"))
    assert numbers["pictures"]["measures"]["short_side"] == {"64": 4}
    page = (tmp_path / "s.html").read_text("utf-8")
    assert "shorter side in pixels" in page and "characters of a text: he" in page and "width: 100.0%" in page
    assert "measures" not in statistics([folder])["texts"]
    assert run("stats", folder, "--samples", 0)[0] == 0


class Page(HTMLParser):
    """What a browser would find on a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))


def test_a_preview_stands_alone_draws_boxes_and_writes_from_the_right(folder: Path, tmp_path: Path) -> None:
    status, text = run("preview", folder, "--out", tmp_path / "p.html", "--samples", 10)
    assert status == 0 and "needs no other file" in text
    page = (tmp_path / "p.html").read_text("utf-8")
    tags = Page(page).tags
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == 5 and all(image["src"].startswith("data:image/jpeg;base64,/9j/") for image in images)
    assert not [tag for tag, attributes in tags if tag in ("link", "script") or "http" in str(attributes)]
    (box,) = [attributes for tag, attributes in tags if tag == "rect"]
    assert (box["x"], box["y"], box["width"], box["height"]) == ("10.0", "20.0", "30.5", "40.0")
    (view,) = [attributes for tag, attributes in tags if tag == "svg"]
    assert view["viewbox"] == "0 0 130 100"
    directions = {attributes["lang"]: attributes["dir"] for _, attributes in tags if "dir" in attributes}
    assert directions == {"en": "auto", "he": "rtl", "ar": "rtl", "de": "auto", "th": "auto"}
    assert "thing &lt;1&gt;" in page and "<1>" not in page
    assert "สิ่งของ 3" in page


def test_directions() -> None:
    tags = ("ar", "ar-EG", "fa", "ur", "yi", "en", "ku", "ku-Arab", "ja")
    assert [direction(tag) == "rtl" for tag in tags] == [True] * 5 + [False, False, True, False]


def test_what_two_sets_differ_in(tmp_path: Path) -> None:
    old = [record(number) for number in range(5)]
    changed = replace(old[3], captions={"en": ["another"], "he": ["כלב על ספה"]})
    before, after = build(tmp_path / "a", old), build(tmp_path / "b", [*old[1:3], changed, old[4], record(7)])
    result = difference(before, after)
    assert {word: result[word] for word in ("added", "removed", "changed", "same")} == {
        "added": 1, "removed": 1, "changed": 1, "same": 3
    }  # fmt: skip
    assert result["examples"] == {"added": ["k7"], "removed": ["k0"], "changed": ["k3"]}
    assert not any(result["counts"].values())
    status, text = run("diff", before, after, "--json", tmp_path / "d.json")
    assert status == 1 and "added: 1 (k7)" in text and "same: 3" in text
    assert json.loads((tmp_path / "d.json").read_text("utf-8"))["examples"]["changed"] == ["k3"]
    assert run("diff", before, before) == (0, "added: 0\nremoved: 0\nchanged: 0\nsame: 5\n")


def test_what_two_text_sets_differ_in(folder: Path, tmp_path: Path) -> None:
    extra = TextPair(text_a="thing 3", lang_a="en", text_b="chose 3", lang_b="fr", source="names", group="g3")
    plan = text_plan()
    parts = [*plan.parts, *one_part([LazyRecord(key="g3", source="names", make=partial(list, [extra]))], name="more")]
    build_sets([replace(plan, parts=parts)], tmp_path)
    result = difference(folder / "texts", tmp_path / "texts")
    assert (result["changed"], result["same"], result["examples"]["changed"]) == (1, 11, ["g3"])
    assert result["counts"]["languages"] == {"fr": (0, 1)}
    assert "languages: fr 0 -> 1 (+1)" in run("diff", folder / "texts", tmp_path / "texts")[1]


def test_sets_of_two_views_are_not_compared(folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected two sets of one view, got image_text and text_pair"):
        difference(folder / "pictures", folder / "texts")


def test_more_examples_than_shown(tmp_path: Path) -> None:
    many = build(tmp_path / "many", [record(number) for number in range(14)])
    few = build(tmp_path / "few", [record(20)])
    status, text = run("diff", few, many)
    assert status == 1 and "added: 14 (" in text and ", …)" in text
    assert len(difference(few, many)["examples"]["added"]) == 10


def test_a_preview_of_one_set(folder: Path) -> None:
    assert "texts-00000" in preview_page({"texts": folder / "texts"}, 2)


def test_a_terminal_only_shows_what_a_corpus_has_written(tmp_path: Path) -> None:
    """An escape sequence in a source's name neither colours nor moves anything; a line's end ends no line."""
    odd = [replace(record(number), source="\x1b[31mred\nnext") for number in range(2)]
    before, after = build(tmp_path / "a", odd), build(tmp_path / "b", [record(0), record(1)])
    for words in (("stats", before), ("diff", before, after)):
        text = run(*words)[1]
        assert "\x1b[31m" not in text and r"\x1b[31mred\nnext" in text
