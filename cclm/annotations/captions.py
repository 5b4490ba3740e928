"""Captions that name images, in the forms that retrieval benchmarks are published in.

train_ann.jsonl, xFlickrCO/annotations/de/test.jsonl   {"sentences": ["…"], "id": "1007129816", "img_path": "100….jpg"}
results_20130124.token, coco-cn_ext.icap2020.txt       1000092795.jpg#0 <TAB> Two young guys …
results.csv                                            image_name| comment_number| comment      (a header, bars)
train.de.json, ja.1k_test.json                         [{"image": "flickr30k-images/1.jpg", "caption": "…" or ["…"]}]
dataset_coco.json, dataset_flickr30k.json              {"images": [{"filename", "split", "sentences": [{"raw"}]}]}
                                                       (Karpathy's splits)
captions_val2014.json, stair_captions_v1.2_val.json    {"images": [{"id": 57870, "file_name": "COCO_….jpg", …}],
                                                        "annotations": [{"image_id": 57870, "caption": "…"}], …}
wit/annotations/test_bg.jsonl                          {"language": "bg", "image_url", "caption_reference_description"}
captions.jsonl (Crossmodal-3600)                       {"image/key": "00041…", "en": {"caption": ["…"], …}, "fil": …}

Line n of every file is about image n of a list:

data/task1/raw/test_2016_flickr.de.gz                  data/task1/image_splits/test_2016_flickr.txt     translations
data/task2/raw/test_2016.{1-5}.de.gz                   data/task2/image_splits/test_2016_images.txt     descriptions
XTD10/test_1kcaptions_ko.txt, MIC/…_de.txt             XTD10/test_image_names.txt

xFlickr&CO has Flickr30k's and COCO's images in one file. Its German and Indonesian tests have one blank caption each.

WIT's images are known by their URLs, compared without decoding: image_idx covers several URLs in places, and val_en has
none. Its captions may be ".", or hold newlines; they stay as they are.

Two numbers are in use for MSCOCO-it's validated development set: its `images` list has only 14 of the 322 images that
are captioned, so a join through it keeps 25 of 1,541 captions. Names follow from the ids where all that are listed do.

Of Multi30K the published protocol takes the five English and German descriptions of task 2, and the one French or Czech
translation of task 1. Lines end at newlines only (captions hold no-break and line separators).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.annotations.images import coco_image, image_identity
from cclm.annotations.reading import (
    Captioned,
    Dropped,
    Problems,
    entries_of,
    indexed,
    items_at,
    name_at,
    object_in,
    read_captions,
)
from cclm.annotations.rows import AnnotationFile, CaptionRow
from cclm.errors import DataError
from cclm.rows.cells import language as tag_of
from cclm.rows.cells import listed, mapping, text, texts, whole_number
from cclm.rows.guard import bad, guarded, refuse, shown
from cclm.rows.lines import aligned_lines, parsed_lines, plain_suffix
from cclm.types import Language

Entry = Mapping[str, Any]
OTHER_SPLIT: Final = "other_split"
"""Reason: the image is in no split that is asked for."""
UNLISTED: Final = "image_unlisted"
"""Reason: an image that the list does not have, and whose name does not follow from its id."""
NO_LANGUAGE: Final = "no_caption_in_language"
"""Reason: an image without captions in the language that is asked for."""
KARPATHY_SPLITS: Final = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}
"""What a split holds in Karpathy's files; the published training sets take `restval`, too."""
WIT_CAPTION: Final = "caption_reference_description"
XM3600_LANGUAGES: Final = (
    "ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr", "hu", "id", "it",
    "ja", "ko", "mi", "nl", "no", "pl", "pt", "quz", "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi", "zh",
)  # fmt: skip
"""Keys of the languages, which are their codes."""
XTD10_LANGUAGES: Final = {"jp": "ja"}
"""What XTD10 calls languages otherwise than their tags."""
_COCO_NAME: Final = re.compile(r"COCO_(?P<split>\w+?)_(?P<id>\d{12})\.jpg")
_TASK1: Final = re.compile(r"(?P<split>[^.]+)\.(?P<language>[a-z]{2})(\.gz)?")
_TASK2: Final = re.compile(r"(?P<split>[^.]+)\.(?P<number>\d)\.(?P<language>[a-z]{2})(\.gz)?")


def read_flickr30k(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[CaptionRow]:
    """Read captions in one of the first four forms above (reasons in `dropped`: blank_caption, no_caption)."""
    if plain_suffix(path) in (".jsonl", ".json"):
        entries = entries_of(path)
        return read_captions(path, language, entries, lambda _, entry: _captioned(*sentences_of(entry)), problems)
    numbered = numbered_captions(str(path), path)
    return read_captions(path, language, numbered, lambda _, pair: _captioned(pair[0], [pair[1]]), problems)


def _captioned(name: str, captions: Sequence[str]) -> Captioned:
    image = name if Path(name).suffix else f"{name}.jpg"
    return Captioned(id=image_identity(image), image=image, captions=captions)


def sentences_of(entry: Entry) -> tuple[str, list[str]]:
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
    entries = items_at(path, object_in(path, problems), "images")
    return read_captions(path, language, entries, partial(_in_split, KARPATHY_SPLITS[split]), problems)


def _in_split(splits: Collection[str], _: Language, image: Entry) -> Captioned | Dropped:
    if name_at(image, "split") not in splits:
        return Dropped(OTHER_SPLIT)
    folder = f"{image['filepath']}/" if "filepath" in image else ""
    sentences = [mapping(one, "a sentence").get("raw") for one in listed(image.get("sentences"), "sentences")]
    return _captioned(folder + name_at(image, "filename"), [text(one, "a sentence's raw") for one in sentences])


def read_coco(
    path: Path, language: str, problems: Problems | None = None, *, only_listed: bool = False
) -> AnnotationFile[CaptionRow]:
    """Read captions in COCO's format: COCO, STAIR, YJ, MSCOCO-it; `only_listed` drops those whose image is not in the
    `images` list (image_unlisted)."""
    document = object_in(path, problems)
    names = indexed(path, document, "images", _listed, problems)
    make = partial(_of_annotation, names, "" if only_listed else _common_split(names))
    return read_captions(path, language, items_at(path, document, "annotations"), make, problems)


def _listed(image: Entry) -> tuple[int, str]:
    return whole_number(image.get("id"), "an image's id"), text(image.get("file_name"), "file_name")


def _common_split(names: Mapping[int, str]) -> str:
    """Return the split that all names and ids agree on; "" if there is none."""
    found = [_COCO_NAME.fullmatch(name) for name in names.values()]
    if not all(match and int(match["id"]) == number for match, number in zip(found, names, strict=True)):
        return ""
    splits = {match["split"] for match in found if match}
    return splits.pop() if len(splits) == 1 else ""


def caption_of(annotation: Entry) -> tuple[int, str]:
    """Return the id of an annotation's image and its caption; ids are numbers, also where they are written as texts."""
    number = whole_number(annotation.get("image_id"), "image_id")
    return number, text(annotation.get("caption"), "a caption")


def _of_annotation(names: Mapping[int, str], split: str, _: Language, entry: Entry) -> Captioned | Dropped:
    number, caption = caption_of(entry)
    name = names.get(number) or (coco_image(number, split) if split else "")
    return Captioned(id=f"coco-{number}", image=name, captions=[caption]) if name else Dropped(UNLISTED)


def read_wit(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[CaptionRow]:
    """Read a file of WIT, whose rows must be of this language (reasons in `dropped`: blank_caption, no_caption)."""
    return read_captions(path, language, entries_of(path), _of_wit, problems)


def _of_wit(expected: Language, entry: Entry) -> Captioned:
    url, name, captions = url_and_texts(entry, (WIT_CAPTION,))
    if (tag := tag_of(name)) != expected:
        refuse("line_broken", f"rows in {expected}", f"one in {tag}")
    return Captioned(id=url, image=url, captions=captions)


def url_and_texts(entry: Entry, fields: Sequence[str]) -> tuple[str, str, list[str]]:
    """Return the URL of a row's image in WIT, the name of its language, and the texts in some fields (not None)."""
    url, name = (text(entry.get(field) or None, field) for field in ("image_url", "language"))
    return url, name, [text(entry[field], field) for field in fields if entry.get(field) is not None]


def read_xm3600(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[CaptionRow]:
    """Read the captions of Crossmodal-3600 in one language; `language` is its key in the file."""
    return read_captions(path, language, entries_of(path), partial(_of_xm3600, language), problems)


def _of_xm3600(key: str, _: Language, entry: Entry) -> Captioned | Dropped:
    image = name_at(entry, "image/key")
    if entry.get(key) is None:
        return Dropped(NO_LANGUAGE)
    captions = texts(mapping(entry[key], f"an object in {key!r}").get("caption"), "a list of captions")
    return Captioned(id=image, image=f"{image}.jpg", captions=captions)


def read_aligned(
    paths: Path | Sequence[Path], language: str, problems: Problems | None = None
) -> AnnotationFile[CaptionRow]:
    """Read one or several files of captions of the images in the list that is published beside them.

    Raises:
        DataError: also where a file has more or fewer lines than the list (reason line_unmatched).
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    opened = [("the list of images", list_beside(files[0]), ""), *((str(path), path, "") for path in files)]
    entries = guarded(str(files[0]), aligned_lines(opened))
    return read_captions(files[0], XTD10_LANGUAGES.get(language, language), entries, _of_lines, problems)


def _of_lines(_: Language, lines: Sequence[str]) -> Captioned:
    # Task 2's lists end some names in "#0".
    name = lines[0].strip().partition("#")[0]
    if not name:
        refuse("line_broken", "the name of an image", "a blank line in the list of images")
    return Captioned(id=image_identity(name), image=name, captions=lines[1:])


def multi30k_paths(folder: Path, language: str, split: str) -> list[Path]:
    """Return the files of a split as the published protocol takes it: five descriptions (en, de), else one translation
    (fr, cs), if there are any (DataError: only some of the five).

    Args:
        folder: multi30k/dataset's own, which holds data/task1 and data/task2.
        language: its code.
        split: train, val or test_2016_flickr.
    """
    described = folder / "data" / "task2" / "raw"
    names = [f"{split.removesuffix('_flickr')}.{number}.{language}" for number in range(1, 6)]
    paths = [path for name in names if (path := _packed_or_not(described / name))]
    if len(paths) not in (0, 5):
        got = ", ".join(path.name for path in paths)
        refuse("file_missing", "all five files of descriptions", got, str(described), "Fetch the others.")
    translated = _packed_or_not(folder / "data" / "task1" / "raw" / f"{split}.{language}")
    return paths or [path for path in (translated,) if path]


def _packed_or_not(path: Path) -> Path | None:
    packed = path.with_name(f"{path.name}.gz")
    return next((one for one in (packed, path) if one.is_file()), None)


def list_beside(captions: Path) -> Path:
    """Return the list of images that a published layout has for a file of captions (DataError: there is none)."""
    folder = captions.parent
    places = [folder.parent / "XTD10" / "test_image_names.txt", folder / "test_image_names.txt"]
    if found := _TASK2.fullmatch(captions.name):
        places.insert(0, folder.parent / "image_splits" / f"{found['split']}_images.txt")
    elif found := _TASK1.fullmatch(captions.name):
        places.insert(0, folder.parent / "image_splits" / f"{found['split']}.txt")
    for path in places:
        if path.is_file():
            return path
    expected = f"the list of images, {' or '.join(map(str, places))}"
    return refuse("file_missing", expected, "no such file", str(captions), "Fetch it beside the captions.")
