"""Stand-in data of retrieval of images by texts and of texts by images.

`retrieval` trains on image-text shard sets of any origin. Each benchmark has a recipe of its own name, which trains
straight from published annotation files: xFlickr&CO, WIT, Multi30K, MSCOCO; XTD10 and XM3600, which have no training
set, on Flickr30k. All are tested on shard sets, or on the published files of any benchmark.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from cclm.annotations.captions import WIT_CAPTION
from cclm.annotations.images import coco_image
from cclm.files.atomic import make_folder, replace_text
from cclm.types import ImageTextRecord
from finetune.stand_in import (
    LANGUAGES,
    THINGS,
    draw_scene,
    draw_things,
    scene_bytes,
    write_document,
    write_image_set,
    write_rows,
)

TRANSLATED: Final = ("de", "es")
"""Languages of stand-in data beside English."""


def draw(folder: Path) -> None:
    """Write images of one shape each, described in a few languages: shard sets train, dev and test, and the same as
    Flickr30k's and xFlickr&CO's annotation files."""
    for split in ("train", "dev", "test"):
        languages = ("de", "en", "es") if split != "dev" else ("en",)
        records = (
            ImageTextRecord(
                key="_".join(thing),
                image=scene_bytes([thing]),
                image_format="png",
                captions={language: [caption(language, *thing)] for language in languages},
                source="stand-in",
                licence="CC0-1.0",
            )
            for thing in THINGS
        )
        write_image_set(folder / split, records)
    draw_xflickrco(folder)


def draw_xflickrco(folder: Path) -> None:
    """Write Flickr30k's files, the tests of xFlickr&CO, and two shots of German."""
    draw_flickr30k(folder)
    own = folder / "xFlickrCO" / "annotations"
    for language in ("en", *TRANSLATED):
        write_rows(own / language / "test.jsonl", _flickr_rows(language))
    write_rows(own / "de" / "train_5.jsonl", _flickr_rows("de"))


def draw_flickr30k(folder: Path) -> None:
    """Write images, and their captions as IGLUE has them of Flickr30k: training and dev."""
    draw_things(folder / "images")
    for split in ("train", "valid"):
        write_rows(folder / "flickr30k" / "annotations" / f"{split}_ann.jsonl", _flickr_rows("en"))


def _flickr_rows(language: str) -> Iterator[dict[str, object]]:
    for name, text in captions(language):
        yield {"id": name, "img_path": f"{name}.png", "sentences": [text]}


def draw_wit(folder: Path) -> None:
    """Write WIT's rows; an image is known by its URL."""
    draw_things(folder / "images")
    for split, languages in {"train": ("en",), "val": ("en",), "test": ("en", "bg", "id")}.items():
        for language in languages:
            rows = [
                {"language": language, "image_url": f"https://example.org/{name}.png", WIT_CAPTION: text}
                for name, text in captions("ru" if language == "bg" else language)
            ]
            write_rows(folder / "wit" / "annotations" / f"{split}_{language}.jsonl", rows)


def draw_multi30k(folder: Path) -> None:
    """Write Multi30K's aligned lines: five descriptions in English and German, one translation in French."""
    draw_things(folder / "images", ".jpg")
    described = {f"{split}.{n}": ("en", "de") for split in ("train", "val", "test_2016") for n in range(1, 6)}
    for task, files in ((2, described), (1, {"test_2016_flickr": ("fr",)})):
        own = folder / "data" / f"task{task}"
        for name, languages in files.items():
            for language in languages:
                _write_packed(own / "raw" / f"{name}.{language}.gz", (text for _, text in captions(language)))
    for name in ("task2/image_splits/{}_images", "task1/image_splits/{}"):
        for split in ("train", "val", "test_2016") if name.startswith("task2") else ("test_2016_flickr",):
            _write_lines(folder / "data" / f"{name.format(split)}.txt", (f"{image}.jpg" for image, _ in captions("en")))


def draw_mscoco(folder: Path) -> None:
    """Write Karpathy's splits of COCO in English, and COCO-CN's tests."""
    names = draw_coco_images(folder)
    images = [
        {"filename": name, "filepath": "val2014", "split": split, "sentences": [{"raw": text}]}
        for split in ("train", "val", "test")
        for name, (_, text) in zip(names, captions("en"), strict=True)
    ]
    write_document(folder / "coco" / "dataset_coco.json", {"images": images})
    chinese = (f"{name[:-4]}#0\t{text}" for name, (_, text) in zip(names, captions("zh"), strict=True))
    _write_lines(folder / "coco-cn" / "imageid.human-written-caption.txt", chinese)
    for split in ("train", "val", "test"):
        _write_lines(folder / "coco-cn" / f"coco-cn_{split}.txt", (name[:-4] for name in names))


def draw_xtd10(folder: Path) -> None:
    """Write Flickr30k's files, and XTD10's aligned lines in a few languages."""
    draw_flickr30k(folder)
    own = folder / "Cross-lingual-Test-Dataset-XTD10"
    _write_lines(own / "XTD10" / "test_image_names.txt", draw_coco_images(folder))
    for language, place in {"de": "MIC", "ko": "XTD10"}.items():
        _write_lines(own / place / f"test_1kcaptions_{language}.txt", (text for _, text in captions(language)))


def draw_xm3600(folder: Path) -> None:
    """Write Flickr30k's files, and Crossmodal-3600's captions in a few languages."""
    draw_flickr30k(folder)
    draw_things(folder / "images", ".jpg")
    texts = {language: dict(captions(language)) for language in ("en", "bn", "sw")}
    rows = [
        {"image/key": name, **{language: {"caption": [found[name]]} for language, found in texts.items()}}
        for name, _ in captions("en")
    ]
    write_rows(folder / "xm3600" / "captions.jsonl", rows)


def draw_coco_images(folder: Path) -> list[str]:
    """Draw each thing under a name of COCO, and return the names."""
    names = [coco_image(number) for number in range(1, len(THINGS) + 1)]
    for name, thing in zip(names, THINGS, strict=True):
        draw_scene(folder / "images" / "val2014" / name, [thing])
    return names


def captions(language: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the caption of each thing."""
    for thing in THINGS:
        yield "_".join(thing), caption(language, *thing)


def caption(language: str, colour: str, shape: str) -> str:
    """Return what a thing is called."""
    return f"{LANGUAGES[language][colour]} {LANGUAGES[language][shape]}"


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    make_folder(path.parent)
    replace_text(path, "".join(f"{line}\n" for line in lines))


def _write_packed(path: Path, lines: Iterable[str]) -> None:
    make_folder(path.parent)
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))
