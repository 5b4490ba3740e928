"""Images of annotation files: what one shows, and which file it is in the folders that a user has.

name (as the rows have it) ─ candidates of its data set ─▶ names below a folder ─ find_image ─▶ the first that is there
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import unquote

from cclm.rows.guard import refuse

_COCO: Final = re.compile(r"COCO_(train2014|val2014|test2014|test2015)_(\d{12})")
_NLVR2: Final = re.compile(r"(train|dev|test1|test2)-\d+-\d+-img[01]\.png")
_DECODED_SUFFIXES: Final = (".jpg", ".png", ".webp", ".jpeg")
"""Of images that a download has stored, whatever their URL ended in."""


def coco_image(image_id: int, split: str = "val2014") -> str:
    """Return COCO's name of an image: 57870 → COCO_val2014_000000057870.jpg."""
    return f"COCO_{split}_{image_id:012d}.jpg"


def image_identity(name: str) -> str:
    """Return what an image shows, the same in every data set that has it: "coco-57870", or the name without folders."""
    coco = _COCO.search(name)
    return f"coco-{int(coco[2])}" if coco else PurePosixPath(name).stem


def key_of(name: str) -> str:
    """Return a key made of a path or an identifier. The hash keeps "a/b" and "a_b" apart."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", re.sub(r"\.[A-Za-z0-9]{1,5}$", "", name))
    return f"{readable[-100:]}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def candidates(name: str) -> Iterator[str]:
    """Yield the names that an image may have below a folder, in the layouts that its data set is published in."""
    yield name
    last = PurePosixPath(name).name
    if coco := _COCO.search(last):
        yield from (f"{coco[1]}/{last}", last)
    elif nlvr2 := _NLVR2.fullmatch(last):
        yield from (f"{nlvr2[1]}/{last}", f"images/{name}", last)
    elif name.startswith(("http://", "https://")):
        yield from (f"{key_of(name)}{suffix}" for suffix in _DECODED_SUFFIXES)
        yield from (last, unquote(last))
    elif "/" in name:  # a folder that is given may be the first of the name itself
        yield name.partition("/")[2]
        yield f"images/{name}"


def _is_below(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


class Listing:
    """Which files are there, by one listing of each folder: to look for each file takes a shared disk minutes."""

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str] | None] = {}

    def __call__(self, path: Path) -> bool:
        """Return whether a file, or a link to one, has this path."""
        if path.parent not in self._names:
            self._names[path.parent] = self._listed(path.parent)
        names = self._names[path.parent]
        return path.is_file() if names is None else path.name in names

    def _listed(self, folder: Path) -> frozenset[str] | None:
        try:
            with os.scandir(folder) as found:
                return frozenset(one.name for one in found if one.is_file())
        except PermissionError:  # files may be opened where nothing may be listed
            return None
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null byte
            return frozenset()
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link to itself
                return frozenset()
            raise


def find_image(folders: Sequence[Path], name: str, is_there: Callable[[Path], bool] = Path.is_file) -> Path:
    """Return the file of an image in the first folder that has it under one of its names.

    Annotation files are downloads: a name that is absolute or climbs (`..`) never leads out of the folders, links in
    them may.

    Raises:
        DataError: none has (reason image_missing).
    """
    for folder in folders:
        for candidate in filter(_is_below, candidates(name)):
            path = folder / candidate
            if is_there(path):
                return path
    expected = f"{name} in {', '.join(map(str, folders)) or 'a folder of images'}"
    return refuse("image_missing", expected, "no such file", name, "Name the folder that holds it.")
