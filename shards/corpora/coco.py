"""COCO captions and their translations, and COCO's objects as regions; pictures are joined by COCO's id.

captions_train2014.json    {"images": [{"id", "file_name", "license", …}], "annotations": [{"image_id", "caption"}], …}
                           COCO itself, STAIR (ja) and mscoco-it, whichever comes first in the file
coco-cn_ext.icap2020.txt   COCO_train2014_000000057870#0 <TAB> caption           (COCO-CN)
instances_train2014.json   {"annotations": [{"image_id", "bbox", "category_id"}], "categories": [{"id", "name"}], …}

The files are read as streams: instances_train2017.json alone is 450 MB of JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cclm.types import Region
from shards.corpora.files import files_by_language, named_files, plain_suffix
from shards.corpora.image_files import folders_of, picture_in
from shards.corpora.image_row import ImageRow, lazy_images
from shards.corpora.json_stream import json_items
from shards.corpora.numbered_captions import read_numbered_captions
from shards.corpora.refusal import refused
from shards.corpora.rows import BadRow
from shards.corpora.spill import grouped
from shards.corpora.translations import Translations, with_translations
from shards.parts import LazyRecord, Part, file_stamp

_SUFFIXES: Final = (".json", ".txt")


@dataclass(frozen=True, kw_only=True)
class Coco:
    """One part, with one draft per picture, all of its languages together."""

    captions: Mapping[str, Path | Sequence[Path]]
    """Language -> annotation files (.json, .txt, also .gz), folders or patterns."""
    images: Path | Sequence[Path]
    """Folders of pictures: train2014, val2014, …"""
    image_name: str = ""
    """Name made of the id, for example "COCO_val2014_{id:012d}.jpg"; empty: as the `images` lists say. Ids are compared
    as numbers: mscoco-it writes most of them as texts."""
    instances: Path | Sequence[Path] = ()
    """Object annotations; their boxes become regions with the category's name (en)."""
    translations: Sequence[Translations] = ()
    """Further captions, joined on `image_id`."""
    source: str = "coco"
    """The corpus's name."""
    licence: str = "unknown"
    """Licence of pictures for which no file names one."""

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        folders_of(self.images)
        files = [path for path, _ in self._files()]
        files += [path for one in self.translations for path in one.files().values()]
        return [Part(name="captions", read=self.read, stamp="-".join(map(file_stamp, files)))]

    def _files(self) -> list[tuple[Path, str]]:
        """Return (file, language); the language of object annotations is ""."""
        files = [(path, language) for language, path in files_by_language(self.captions, _SUFFIXES)]
        return files + [(path, "") for path in named_files(self.instances, _SUFFIXES).values()]

    def read(self) -> Iterator[LazyRecord]:
        """Yield one draft a picture; pictures without captions, and captions without a picture's name, are refused."""
        return lazy_images(with_translations(self.rows(), self.translations, self.source))

    def rows(self) -> Iterator[ImageRow | LazyRecord]:
        """Yield the pictures, before they are read."""
        folders, categories = folders_of(self.images), self._categories()
        for identity, items in grouped(self._items()):
            if isinstance(items[0], LazyRecord):
                yield from items
            else:
                yield self._row(int(identity), items, folders, categories)

    def _row(
        self, identity: int, items: Sequence[Any], folders: Sequence[Path], categories: Mapping[int, str]
    ) -> ImageRow | LazyRecord:
        listed = [item[1] for item in items if item[0] == "image"]
        captions: dict[str, list[str]] = {}
        for _, language, text in (item for item in items if item[0] == "caption"):
            captions.setdefault(language, []).append(text)
        names = [self.image_name.format(id=identity)] if self.image_name else [image["file_name"] for image in listed]
        where = f"{self.source} image_id {identity}"
        if not names or not captions:
            missing = "captions" if names else "an entry in `images`"
            return refused(
                key=f"{self.source}-{identity}",
                source=self.source,
                reason="captions_missing" if names else "image_unlisted",
                expected="a picture with a name and captions",
                got=f"no {missing}, {sum(map(len, captions.values()))} captions",
                where=where,
                do="Set `image_name` in the recipe if names follow from ids." if not names else "Leave it out.",
            )
        boxes = [item[1:] for item in items if item[0] == "box"]
        size = next(((image["width"], image["height"]) for image in listed if image.get("width")), None)
        return ImageRow(
            key=f"{self.source}-{identity}",
            image=picture_in(folders, names[0]),
            captions=captions,
            source=self.source,
            licence=next((image["licence"] for image in listed if image.get("licence")), self.licence),
            identity=f"coco-{identity}",
            ids={"image_id": str(identity), "file_name": names[0]},
            regions=[Region(box=box, captions={"en": [categories.get(kind, "")]}) for box, kind in boxes],
            annotated_size=size if boxes else None,
            where=where,
        )

    def _items(self) -> Iterator[tuple[str, Any]]:
        for path, language in self._files():
            if plain_suffix(path) == ".txt":
                yield from self._numbered(path, language)
            else:
                yield from self._listed(path)
                yield from self._annotated(path, language)

    def _numbered(self, path: Path, language: str) -> Iterator[tuple[str, Any]]:
        for number, found in read_numbered_captions(path):
            identity = None if isinstance(found, BadRow) else re.search(r"(\d+)(?:\.\w+)?$", found[0])
            if isinstance(found, BadRow) or identity is None:
                bad = found if isinstance(found, BadRow) else BadRow(found[0], expected="a name that ends in COCO's id")
                yield f"\0{path}:{number}", bad.draft(path.name, number, self.source)
                continue
            name = found[0] if Path(found[0]).suffix else f"{found[0]}.jpg"
            yield str(int(identity[1])), ("image", {"file_name": name})
            yield str(int(identity[1])), ("caption", language, found[1])

    def _listed(self, path: Path) -> Iterator[tuple[str, Any]]:
        licences = {
            entry.get("id"): str(entry.get("name"))
            for entry in json_items(path, "licenses.item")
            if not isinstance(entry, BadRow)
        }
        for number, entry in enumerate(json_items(path, "images.item"), 1):
            if isinstance(entry, BadRow) and entry.tail:
                return  # the annotations of the same file end there, too, and say so
            try:
                if isinstance(entry, BadRow):
                    raise TypeError(entry.why)
                identity = str(int(entry["id"]))
                image = {"file_name": str(entry["file_name"]), "licence": licences.get(entry.get("license"))}
            except (KeyError, TypeError, ValueError) as error:
                bad = BadRow(f"{type(error).__name__} {error}", expected="an image with id and file_name")
                yield f"\0i{path}:{number}", bad.draft(f"{path.name} image", number, self.source)
            else:
                yield identity, ("image", image | {"width": entry.get("width"), "height": entry.get("height")})

    def _annotated(self, path: Path, language: str) -> Iterator[tuple[str, Any]]:
        for number, entry in enumerate(json_items(path, "annotations.item"), 1):
            place = f"{path.name} annotation"
            try:
                if isinstance(entry, BadRow):
                    yield f"\0{path}:{number}", entry.draft(place, number, self.source)
                elif language:
                    yield str(int(entry["image_id"])), ("caption", language, str(entry["caption"]))
                else:
                    x, y, width, height = (float(value) for value in entry["bbox"])
                    yield str(int(entry["image_id"])), ("box", (x, y, width, height), entry["category_id"])
            except (KeyError, TypeError, ValueError) as error:
                bad = BadRow(f"{type(error).__name__} {error}", expected="an annotation with image_id and caption")
                yield f"\0{path}:{number}", bad.draft(place, number, self.source)

    def _categories(self) -> dict[int, str]:
        files = named_files(self.instances, _SUFFIXES).values()
        return {
            entry["id"]: str(entry["name"])
            for path in files
            for entry in json_items(path, "categories.item")
            if not isinstance(entry, BadRow)
        }
