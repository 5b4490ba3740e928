"""Corpora and recipes of a few records, made on the spot."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from cclm.errors import DataError
from cclm.types import ImageTextRecord, TextPair, View
from shards.build import SetPlan, plan_set
from shards.parts import LazyRecord, Part, Skipped
from shards.recipe import DuplicateSettings, FilterSettings, SamplingSettings, SetRecipe

PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def make_image(number: int, bad: bool) -> ImageTextRecord:
    if bad:
        raise DataError(
            reason="render_failed", expected="a drawing", got="a blot", do="Draw again.", where=f"n{number}"
        )
    return ImageTextRecord(
        key=f"key-{number}",
        image=PNG_START + bytes([number]) * 100 + PNG_END,
        image_format="png",
        captions={"en": [f"thing {number}"], "ko": [f"물건 {number}"]},
        source=("pen", "brush")[number % 2],
        licence="CC0-1.0",
    )


def lazy_images(count: int = 20, bad: tuple[int, ...] = ()) -> list[LazyRecord]:
    return [
        LazyRecord(
            key=f"key-{number}", source=("pen", "brush")[number % 2], make=partial(make_image, number, number in bad)
        )
        for number in range(count)
    ]


def lazy_texts(count: int = 12) -> list[LazyRecord]:
    groups = [
        [
            TextPair(text_a=f"thing {n}", lang_a="en", text_b=f"{word} {n}", lang_b=lang, source="names", group=f"g{n}")
            for lang, word in (("de", "Ding"), ("he", "דבר"), ("th", "สิ่งของ"))
        ]
        for n in range(count)
    ]
    return [LazyRecord(key=pairs[0].group, source="names", make=partial(list, pairs)) for pairs in groups]


def one_part(
    records: Sequence[LazyRecord], stamp: str = "", name: str = "all", skipped: Sequence[Skipped] = ()
) -> list[Part]:
    """Return a part; what it skips stands before every other lazy."""
    items = [item for pair in itertools.zip_longest(skipped, records[::2], records[1::2]) for item in pair if item]
    return [Part(name=name, read=partial(iter, items), stamp=stamp)]


def read_all(parts: Sequence[Part]) -> list[LazyRecord]:
    return [item for part in parts for item in part.read() if isinstance(item, LazyRecord)]


def image_plan(count: int = 20, bad: tuple[int, ...] = (), max_bad: float = 0.5, shards: int = 4) -> SetPlan:
    recipe = SetRecipe(
        view=View.IMAGE_TEXT, corpus="drawn", num_shards=shards, max_bad_fraction=max_bad, records_per_chunk=6
    )
    return plan_set("images", recipe, one_part(lazy_images(count, bad), stamp=f"{count}"))


def text_plan(count: int = 12) -> SetPlan:
    recipe = SetRecipe(
        view=View.TEXT_PAIR,
        corpus="named",
        num_shards=3,
        pairs_per_block=5,
        licences={"names": "Unicode-3.0"},
        records_per_chunk=5,
    )
    records = lazy_texts(count)
    return plan_set("texts", recipe, [*one_part(records[: count // 2]), *one_part(records[count // 2 :], name="rest")])


def unlike_plan(shards: int = 2) -> SetPlan:
    """Pairs with everything that a build may refuse: repetitions, broken ones, short ones, too many of a language."""
    lines = [
        ("a dog sleeps on the sofa", "ein Hund schläft auf dem Sofa", "de"),
        ("A dog  sleeps on the sofa", "Ein Hund schläft auf dem Sofa", "de"),
        ("no", "nein", "de"),
        ("a bird", "", "de"),
        *((f"this is sentence number {n}", f"dies ist der Satz mit der Nummer {n}", "de") for n in range(40)),
        *((f"this is sentence number {n}", f"c'est la phrase numéro {n}", "fr") for n in range(10)),
        *((f"this is sentence number {n}", f"c'est la phrase numéro {n}", "fr") for n in range(2)),
    ]
    records = [
        LazyRecord(
            key=f"{a}",
            source="lines",
            make=partial(list, [TextPair(text_a=a, lang_a="en", text_b=b, lang_b=lang, source="lines", group=a)]),
        )
        for a, b, lang in lines
    ]
    recipe = SetRecipe(
        view=View.TEXT_PAIR,
        corpus="lines",
        num_shards=shards,
        max_bad_fraction=0.5,
        records_per_chunk=16,
        filters=FilterSettings(min_characters=3),
        duplicates=DuplicateSettings(exact=True),
        sampling=SamplingSettings(temperature=2.0),
    )
    parts = [
        *one_part(records[:20], skipped=[rows_of("lines", ja=n, it=1) for n in range(9)]),
        *one_part(records[20:], name="rest", skipped=[rows_of("lines", ja=1), rows_of("more", it=5)]),
        *one_part([], name="nothing wanted", skipped=[rows_of("more", th=2, it=1)]),
    ]
    return plan_set("unlike", recipe, parts)


def rows_of(source: str, **rows: int) -> Skipped:
    return Skipped(source=source, rows=rows)


def write_picture_folder(folder: Path) -> Path:
    """Write three sound pictures and four broken entries, with their captions.jsonl."""
    (folder / "a").mkdir(parents=True)
    lines: list[object] = []
    for number, suffix in enumerate(("jpg", "png", "webp")):
        path = folder / "a" / f"picture {number}.{suffix}"
        Image.new("RGB", (8, 6), (40 * number, 100, 200)).save(path)
        lines.append({"image": f"a/picture {number}.{suffix}", "captions": {"en": [f"picture {number}"]}})
    whole = (folder / "a" / "picture 1.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    lines += [
        {"image": "cut.png", "captions": {"en": ["cut"]}},
        {"image": "nowhere.png", "captions": {"en": ["missing"]}},
        {"image": "a/picture 0.jpg", "key": "silent", "captions": {}},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + "\n{broken\n"
    (folder / "captions.jsonl").write_text(text, encoding="utf-8")
    return folder


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def count_and_make(made: Any, lazy: Any) -> Any:
    made.append(lazy.key)
    return lazy.make()
