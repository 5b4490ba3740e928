"""Captions that name images: Flickr30k in its forms, IGLUE's xFlickr&CO, COCO-CN, and the lists of the published code.

train_ann.jsonl, xFlickrCO/annotations/de/test.jsonl   {"sentences": ["…"], "id": "1007129816", "img_path": "100….jpg"}
results_20130124.token, coco-cn_ext.icap2020.txt       1000092795.jpg#0 <TAB> Two young guys …
results.csv                                            image_name| comment_number| comment      (a header, bars)
train.de.json, ja.1k_test.json                         [{"image": "flickr30k-images/1.jpg", "caption": "…" or ["…"]}]
dataset_coco.json, dataset_flickr30k.json              {"images": [{"filename", "split", "sentences": [{"raw"}]}]}
                                                       (Karpathy's splits)

xFlickr&CO has Flickr30k's and COCO's images in one file. Its German and Indonesian tests have one blank caption each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.annotations.images import image_identity
from cclm.annotations.reading import (
    Captioned,
    Dropped,
    Problems,
    entries_of,
    items_at,
    known_language,
    name_at,
    object_in,
    read_captions,
)
from cclm.annotations.rows import AnnotationFile, CaptionRow
from cclm.errors import DataError
from cclm.rows.cells import listed, mapping, text, texts
from cclm.rows.guard import bad, guarded, shown
from cclm.rows.lines import parsed_lines, plain_suffix

OTHER_SPLIT: Final = "other_split"
"""Reason: the image is in no split that is asked for."""
KARPATHY_SPLITS: Final = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}
"""What a split holds in Karpathy's files; the published training sets take `restval`, too."""


def read_flickr30k(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[CaptionRow]:
    """Read captions in any of the forms above but Karpathy's (reasons in `dropped`: blank_caption, no_caption)."""
    tag = known_language(language, path)
    if plain_suffix(path) in (".jsonl", ".json"):
        return read_captions(path, tag, entries_of(path), lambda _, entry: _captioned(*sentences_of(entry)), problems)
    return read_captions(
        path, tag, numbered_captions(str(path), path), lambda _, pair: _captioned(pair[0], [pair[1]]), problems
    )


def _captioned(name: str, captions: Sequence[str]) -> Captioned:
    image = name if Path(name).suffix else f"{name}.jpg"
    return Captioned(image_identity(image), image, captions)


def sentences_of(entry: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return an image's name and its captions, of a row of IGLUE or of the published code."""
    if "sentences" not in entry and "caption" in entry:
        return name_at(entry, "image"), texts(entry["caption"], "a caption or a list of captions")
    sentences = listed(entry.get("sentences", ""), "a list of sentences")
    return name_at(entry, "img_path"), [text(one, "a sentence") for one in sentences]


def numbered_captions(name: str, path: Path) -> Iterator[tuple[str, tuple[str, str] | DataError]]:
    """Yield ("NAME:NUMBER", (the image's name, caption)) of lines `NAME#N <TAB> caption`, or of a CSV file."""
    lines = parsed_lines(path, _with_bars, first=2) if plain_suffix(path) == ".csv" else parsed_lines(path, _with_tab)
    return guarded(name, lines)


def _with_tab(line: str) -> tuple[str, str] | DataError:
    name, tab, caption = line.partition("\t")
    image, hash_sign, _ = name.rpartition("#")
    if tab and hash_sign and image:
        return image, caption
    return bad("line_broken", "NAME#N, a tab, and a caption", "a line of another form")


def _with_bars(line: str) -> tuple[str, str] | DataError:
    cells = line.split("|", 2)
    if len(cells) == 3:
        return cells[0].strip(), cells[2].strip()
    # One line of the published file (an image's fourth comment) lacks its second bar.
    return bad("line_broken", "image_name| comment_number| comment", shown(line))


def read_karpathy(
    path: Path, language: str, problems: Problems | None = None, *, split: str = "test"
) -> AnnotationFile[CaptionRow]:
    """Read a split of Karpathy's file of COCO or Flickr30k (reasons in `dropped`: other_split, …)."""
    tag = known_language(language, path)
    entries = items_at(path, object_in(path, problems), "images")
    return read_captions(path, tag, entries, partial(_in_split, KARPATHY_SPLITS[split]), problems)


def _in_split(splits: Collection[str], _: str, image: Mapping[str, Any]) -> Captioned | Dropped:
    if name_at(image, "split") not in splits:
        return Dropped(OTHER_SPLIT)
    folder = f"{image['filepath']}/" if "filepath" in image else ""
    sentences = [mapping(one, "a sentence").get("raw") for one in listed(image.get("sentences"), "sentences")]
    return _captioned(folder + name_at(image, "filename"), [text(one, "a sentence's raw") for one in sentences])
