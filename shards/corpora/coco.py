"""COCO captions and their translations, and COCO's objects as regions; images are joined by COCO's id.

captions_train2014.json    {"images": [{"id", "file_name", "license", …}], "annotations": [{"image_id", "caption"}], …}
                           COCO itself, STAIR (ja) and mscoco-it, whichever comes first in the file
coco-cn_ext.icap2020.txt   COCO_train2014_000000057870#0 <TAB> caption           (COCO-CN)
instances_train2014.json   {"annotations": [{"image_id", "bbox", "category_id"}], "categories": [{"id", "name"}], …}

The files are read as streams: instances_train2017.json alone is 450 MB of JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.types import Region
from shards.corpora.cells import box, gathered, identifier, mapping, text, whole_number
from shards.corpora.entries import Keyed, each, joined, refuse
from shards.corpora.files import files_by_language, named_files, plain_suffix
from shards.corpora.flickr30k import numbered_captions
from shards.corpora.image_corpus import ImageRow, ImageRows, NamedImages
from shards.corpora.rows import json_items
from shards.guard import mistaken
from shards.parts import Part

_SUFFIXES: Final = (".json", ".txt")


@dataclass(frozen=True, kw_only=True)
class Coco(NamedImages):
    """One part, with one record per image, all of its languages together."""

    captions: Mapping[str, Path | Sequence[Path]]
    """Language -> annotation files (.json, .txt, also .gz), folders or patterns."""
    image_name: str = ""
    """Name made of the id, for example "COCO_val2014_{id:012d}.jpg"; empty: as the `images` lists say. Ids are compared
    as numbers: mscoco-it writes most of them as texts."""
    instances: Path | Sequence[Path] = ()
    """Object annotations; their boxes become regions with the category's name (en)."""
    source: str = "coco"

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        return self.part_of_all("captions", self.rows, [path for path, _ in self._files()])

    def check(self) -> None:
        """Raise a ConfigError where `image_name` is no pattern."""
        super().check()
        try:
            self.image_name.format(id=1)
        except (LookupError, ValueError) as error:
            expected, do = 'a name with {id}, such as "COCO_val2014_{id:012d}.jpg"', "Correct `image_name`."
            mistaken(expected, f"{self.image_name!r} ({error})", do)

    def _files(self) -> list[tuple[Path, str]]:
        """Return (file, language); the language of object annotations is ""."""
        files = [(path, language) for language, path in files_by_language(self.captions, _SUFFIXES)]
        return files + [(path, "") for path in named_files(self.instances, _SUFFIXES).values()]

    def rows(self) -> ImageRows:
        """Yield the images; those without captions, and captions without an image's name, are refused."""
        categories: dict[str, str] = {}  # is filled before the first row is made
        return joined(self._items(categories), partial(self._row, categories), self.source)

    def _row(self, categories: Mapping[str, str], identity: str, items: Sequence[Any]) -> Iterator[ImageRow]:
        listed = [item[1] for item in items if item[0] == "image"]
        captions = gathered((item[1], [item[2]]) for item in items if item[0] == "caption")
        names = [self.image_name.format(id=int(identity))] if self.image_name else [one["file_name"] for one in listed]
        where = f"{self.source} image_id {identity}"
        if not names or not captions:
            refuse(
                "captions_missing" if names else "image_unlisted",
                "an image with a name and captions",
                f"no {'captions' if names else 'entry in `images`'}, {sum(map(len, captions.values()))} captions",
                where,
                "Leave it out." if names else "Set `image_name` in the recipe if names follow from ids.",
            )
        boxes = [item[1:] for item in items if item[0] == "box"]
        yield self.image_row(
            key=f"{self.source}-{identity}",
            image=self.image_named(names[0]),
            captions=captions,
            licence=next((image["licence"] for image in listed if image.get("licence")), self.licence),
            identity=f"coco-{identity}",
            ids={"image_id": identity, "file_name": names[0]},
            regions=[Region(box=corners, captions={"en": [categories.get(kind, "")]}) for corners, kind in boxes],
            annotated_size=next((image["size"] for image in listed if image.get("size")), None) if boxes else None,
            where=where,
        )

    def _items(self, categories: dict[str, str]) -> Keyed:
        for path, language in self._files():
            if plain_suffix(path) == ".txt":
                yield from each(numbered_captions(path), partial(_numbered, language), self.source)
                continue
            licences: dict[str, str] = {}
            arrays: list[tuple[str, str, Callable[[str, Any], Keyed]]] = [
                ("licenses.item", "licenses.item", partial(_named, licences)),
                ("categories.item", "categories.item", partial(_named, categories)),
                ("images.item", "image", partial(_listed, licences)),
                ("annotations.item", "annotation", partial(_annotated, language)),
            ]
            for prefix, what, make in arrays:
                if not (language and what == "categories.item"):
                    told_elsewhere = what != "annotation"
                    items = json_items(f"{path.name} {what}", path, prefix, told_elsewhere=told_elsewhere)
                    yield from each(items, make, self.source)


def _named(names: dict[str, str], _: str, entry: Any) -> Keyed:
    """Note a name by its id; no record comes of it."""
    entry = mapping(entry, "an object with id and name")
    names[identifier(entry.get("id"))] = text(entry.get("name"), "a name")
    return iter(())


def _numbered(language: str, _: str, found: tuple[str, str]) -> Keyed:
    name, caption = found
    identity = re.search(r"(\d+)(?:\.\w+)?$", name)
    if identity is None:
        refuse("line_broken", "a name that ends in COCO's id", name)
    yield str(int(identity[1])), ("image", {"file_name": name if Path(name).suffix else f"{name}.jpg"})
    yield str(int(identity[1])), ("caption", language, caption)


def _listed(licences: Mapping[str, str], _: str, entry: Any) -> Keyed:
    entry = mapping(entry, "an image with id and file_name")
    licence = licences.get(identifier(entry.get("license")))
    image: dict[str, Any] = {"file_name": text(entry.get("file_name"), "file_name"), "licence": licence}
    if entry.get("width"):
        image["size"] = (whole_number(entry["width"], "width"), whole_number(entry.get("height"), "height"))
    yield str(whole_number(entry.get("id"), "id")), ("image", image)


def _annotated(language: str, _: str, entry: Any) -> Keyed:
    entry = mapping(entry, "an annotation")
    identity = str(whole_number(entry.get("image_id"), "image_id"))
    if language:
        yield identity, ("caption", language, text(entry.get("caption"), "a caption"))
    else:
        yield identity, ("box", box(entry.get("bbox")), identifier(entry.get("category_id")))
