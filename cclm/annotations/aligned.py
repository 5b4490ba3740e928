"""Captions aligned with a list of images: Multi30K and XTD10. Line n of every file is about image n of the list.

Multi30K  data/task1/raw/test_2016_flickr.de.gz        data/task1/image_splits/test_2016_flickr.txt     translations
          data/task2/raw/test_2016.{1-5}.de.gz         data/task2/image_splits/test_2016_images.txt     descriptions
XTD10     XTD10/test_1kcaptions_ko.txt, MIC/test_1kcaptions_de.txt, STAIR/test_1kcaptions_jp.txt
          XTD10/test_image_names.txt

The published protocol takes the five English and German descriptions of task 2, and the one French or Czech translation
of task 1. Lines end at newlines only (captions hold no-break and line separators).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cclm.annotations.images import image_identity
from cclm.annotations.reading import Captioned, Problems, known_language, read_captions
from cclm.annotations.rows import AnnotationFile, CaptionRow
from cclm.rows.guard import guarded, refuse
from cclm.rows.lines import aligned_lines

XTD10_LANGUAGES: Final = {"jp": "ja"}
"""What XTD10 calls languages otherwise than their tags."""
_TASK1: Final = re.compile(r"(?P<split>[^.]+)\.(?P<language>[a-z]{2})(\.gz)?")
_TASK2: Final = re.compile(r"(?P<split>[^.]+)\.(?P<number>\d)\.(?P<language>[a-z]{2})(\.gz)?")


def read_aligned(
    paths: Path | Sequence[Path], language: str, problems: Problems | None = None, *, names: Path | None = None
) -> AnnotationFile[CaptionRow]:
    """Read one or several files of captions of the images in `names` (None: the list that is published beside them).

    Raises:
        DataError: also where a file has more or fewer lines than the list (reason line_unmatched).
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    tag = known_language(XTD10_LANGUAGES.get(language, language), files[0])
    names = names or list_beside(files[0])
    opened = [("the list of images", names, ""), *((str(path), path, "") for path in files)]
    entries = guarded(str(files[0]), aligned_lines(opened))
    return read_captions(files[0], tag, entries, _captioned, problems)


def _captioned(_: str, lines: Sequence[str]) -> Captioned:
    # Task 2's lists end some names in "#0".
    name = lines[0].strip().partition("#")[0]
    if not name:
        refuse("line_broken", "the name of an image", "a blank line in the list of images")
    return Captioned(image_identity(name), name, lines[1:])


def read_multi30k(
    folder: Path, language: str, problems: Problems | None = None, *, split: str = "test_2016_flickr"
) -> AnnotationFile[CaptionRow]:
    """Read a split as the published protocol takes it: five descriptions (en, de), else one translation (fr, cs).

    Args:
        folder: multi30k/dataset's own, which holds data/task1 and data/task2.
        language: its code.
        problems: errors are noted here.
        split: train, val or test_2016_flickr.

    Raises:
        DataError: it has neither (reason file_missing), or only some of the five.
    """
    if paths := multi30k_paths(folder, language, split):
        return read_aligned(paths, language, problems)
    expected = f"{split}.{language} in task1/raw, or five descriptions of it in task2/raw"
    return refuse("file_missing", expected, "neither", str(folder), "Fetch them, or name another folder.")


def multi30k_paths(folder: Path, language: str, split: str) -> list[Path]:
    """Return the files that `read_multi30k` reads, if there are any (DataError: only some of the five)."""
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
