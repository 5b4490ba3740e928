"""Captions that name images, joined by image: COCO, Flickr30k and their like; and Visual Genome with its boxes.

COCO, its translations, and its objects as regions; large JSON files are read as streams:

captions_train2014.json    {"images": [{"id", "file_name", "license", …}], "annotations": [{"image_id", "caption"}], …}
                           COCO itself, STAIR (ja) and mscoco-it, whichever comes first in the file
coco-cn_ext.icap2020.txt   COCO_train2014_000000057870#0 <TAB> caption           (COCO-CN)
instances_train2014.json   {"annotations": [{"image_id", "bbox", "category_id"}], "categories": [{"id", "name"}], …}

Visual Genome, whose images have the phrases of their regions as captions (else the names of their objects), as in the
published 4M; boxes are in pixels of the stored image:

region_descriptions.json   [{"id": 1, "regions": [{"region_id", "image_id", "phrase", "x", "y", "width", "height"}]}]
objects.json               [{"image_id": 1, "objects": [{"object_id", "names": ["clock"], "x", "y", "w", "h"}]}]
attributes.json            the same, with "attributes" in place of "objects", each with "attributes": ["green", "tall"]
image_data.json            [{"image_id": 1, "width": 800, "height": 600, "coco_id", "url", …}]

Flickr30k in its three forms, IGLUE's xFlickr&CO with COCO images, too:

results_20130124.token     1000092795.jpg#0 <TAB> Two young guys …
results.csv                image_name| comment_number| comment         (a header, cells between "|")
train_ann.jsonl            {"sentences": ["…"], "id": "1000092795", "img_path": "1000092795.jpg"}    (IGLUE)

Multi30K, XTD10 and their like have a list of images, and files whose line n is a caption of image n:

image_splits/train.txt     1000092795.jpg
raw/train.de.gz            Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from cclm.annotations.captions import caption_of, numbered_captions, sentences_of
from cclm.annotations.images import key_of
from cclm.errors import DataError
from cclm.rows.cells import box, gathered, identifier, listed, mapping, text, whole_number
from cclm.rows.guard import guarded, mistaken, refuse
from cclm.rows.lines import aligned_lines, plain_suffix
from cclm.rows.tables import json_items, read_rows
from cclm.types import Region
from shards.corpora.files import ENGLISH, LanguageTag, files_by_language, named_files, note_read
from shards.corpora.image_corpus import ImageRow, ImageRows, NamedImages, Translations, unmatched
from shards.parts import Keyed, Part, each, joined

_CAPTION_FILES: Final = (".token", ".txt", ".csv", ".jsonl")
_ANNOTATION_FILES: Final = (".json", ".txt")


@dataclass(frozen=True, kw_only=True)
class _Captioned(NamedImages):
    captions: Mapping[str, Path | Sequence[Path]]
    """Language -> files (also compressed), folders or patterns."""

    def _image(self, name: str, captions: Sequence[tuple[str, Sequence[str]]], where: str = "") -> Iterator[ImageRow]:
        yield self.image_row(
            key=key_of(name),
            image=self.image_named(name),
            captions=gathered(captions),
            identity=Path(name).stem,
            ids={"image": name},
            where=where or f"{self.source} {name}",
        )


@dataclass(frozen=True, kw_only=True)
class Flickr30k(_Captioned):
    """Files .token, .txt, .csv, .jsonl. For xFlickr&CO, `images` are both Flickr30k's and COCO's val2014."""

    source: str = "flickr30k"

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        files = [path for _, path in files_by_language(self.captions, _CAPTION_FILES)]
        return self.part_of_all("captions", self.rows, files)

    def rows(self) -> ImageRows:
        """Yield the images."""
        return joined(self._captions(), self._image, self.source)

    def _captions(self) -> Keyed:
        """Yield (the image's name, (language, texts))."""
        for language, path in files_by_language(self.captions, _CAPTION_FILES):
            if plain_suffix(path) == ".jsonl":
                yield from each(read_rows(path.name, path, needed=()), partial(_of_iglue, language), self.source)
            else:
                yield from each(numbered_captions(path.name, path), partial(_of_pair, language), self.source)


def _of_pair(language: str, _: str, pair: tuple[str, str]) -> Keyed:
    yield pair[0], (language, [pair[1]])


def _of_iglue(language: str, _: str, row: Mapping[str, Any]) -> Keyed:
    name, sentences = sentences_of(row)
    yield name, (language, sentences)


@dataclass(frozen=True, kw_only=True)
class AlignedLines(_Captioned):
    """Files aligned with a list of images; several of a language give several captions (Multi30K's task 2)."""

    names: Path
    """The list of images, one name a line."""
    source: str = "multi30k"

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        note_read([self.names])
        files = [path for _, path in files_by_language(self.captions, ())]
        return self.part_of_all(self.names.name, self.rows, [self.names, *files])

    def rows(self) -> ImageRows:
        """Yield one image a line; lines that a file has more or less than the list are refused (line_unmatched)."""
        captions = files_by_language(self.captions, ())
        files = [("the list of images", self.names, ""), *((path.name, path, "") for _, path in captions)]
        row = partial(self._row, [language for language, _ in captions])
        return each(guarded(self.names.name, aligned_lines(files)), row, self.source)

    def _row(self, languages: Sequence[str], place: str, lines: Sequence[str]) -> Iterator[ImageRow]:
        captions = [(tag, [caption]) for tag, caption in zip(languages, lines[1:], strict=True)]
        return self._image(lines[0].strip(), captions, place)


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
        files = [(path, language) for language, path in files_by_language(self.captions, _ANNOTATION_FILES)]
        return files + [(path, "") for path in named_files(self.instances, _ANNOTATION_FILES).values()]

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
                yield from each(numbered_captions(path.name, path), partial(_numbered, language), self.source)
                continue
            licences: dict[str, str] = {}
            arrays: list[tuple[str, str, Callable[[str, Any], Keyed]]] = [
                ("licenses.item", "licenses.item", partial(_named, licences)),
                ("categories.item", "categories.item", partial(_named, categories)),
                ("images.item", "image", partial(_listed, licences)),
                ("annotations.item", "annotation", partial(_annotated, language)),
            ]
            for prefix, what, make in arrays:
                items = json_items(f"{path.name} {what}", path, prefix)
                if what != "annotation":  # a document that breaks off says so once: where its annotations are read
                    items = ((place, item) for place, item in items if not isinstance(item, DataError))
                if not (language and what == "categories.item"):
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
    if language:
        number, caption = caption_of(entry)
        yield str(number), ("caption", language, caption)
    else:
        identity = str(whole_number(entry.get("image_id"), "image_id"))
        yield identity, ("box", box(entry.get("bbox")), identifier(entry.get("category_id")))


@dataclass(frozen=True, kw_only=True)
class VisualGenome(NamedImages):
    """One part, with one record per image. `images`: VG_100K and VG_100K_2; names are IMAGE_ID.jpg."""

    image_data: Path
    """image_data.json, also .gz: sizes of the annotated images, and COCO's ids."""
    regions: Path | Sequence[Path] = ()
    """region_descriptions.json."""
    objects: Path | Sequence[Path] = ()
    """objects.json, or attributes.json for texts such as "green clock"."""
    region_translations: Sequence[Translations] = ()
    """Further texts of regions; their `id` is a region_id (or an object_id)."""
    language: LanguageTag = ENGLISH
    """Of the annotations."""
    source: str = "visual-genome"
    licence: str = "CC-BY-4.0"
    """Of the annotations; the images are from Flickr."""

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        note_read([self.image_data])
        translated = (path for one in self.region_translations for path in one.files().values())
        return self.part_of_all("regions", self.rows, [self.image_data, *self._boxed(), *translated])

    def _boxed(self) -> list[Path]:
        return [path for paths in (self.regions, self.objects) for path in named_files(paths, (".json",)).values()]

    def rows(self) -> ImageRows:
        """Yield the images; those without any box are refused (captions_missing)."""
        return joined(self._images_and_regions(), self._row, self.source)

    def _row(self, identity: str, items: Sequence[Any]) -> Iterator[ImageRow]:
        data = next((item for item in items if isinstance(item, Mapping)), None)
        boxes = [item for item in items if isinstance(item, _Box)]
        where = f"{self.source} image_id {identity}"
        if data is None or not boxes:
            reason, got = ("image_unlisted", "no entry there") if data is None else ("captions_missing", "no box")
            refuse(reason, "an image in image_data.json, with regions or objects", got, where)
        # Phrases of regions describe a scene; names of objects stand in for them only where there are none.
        described = [item for item in boxes if item.is_described] or boxes
        ids = {"image_id": identity} | ({"coco_id": data["coco_id"]} if data["coco_id"] else {})
        yield self.image_row(
            key=f"{self.source}-{identity}",
            image=self.image_named(f"{identity}.jpg"),
            captions=gathered(texts for item in described for texts in item.region.captions.items()),
            # Half of the images are COCO's: the same one must not be its own negative.
            identity=f"coco-{data['coco_id']}" if data["coco_id"] else f"vg-{identity}",
            ids=ids,
            regions=[item.region for item in boxes],
            annotated_size=data["size"],
            where=where,
        )

    def _images_and_regions(self) -> Keyed:
        """Yield sizes and boxes by the image's id."""
        yield from each(json_items(self.image_data.name, self.image_data), _sized, self.source)
        if self.region_translations:
            yield from joined(self._by_box(), self._with_texts, self.source)
        else:
            for item in self._by_box():
                yield (item[1].image, item[1]) if isinstance(item, tuple) else item

    def _by_box(self) -> Keyed:
        """Yield boxes by their own id, and the translations of them."""
        for path in self._boxed():
            yield from each(json_items(path.name, path), self._boxes_of, self.source)
        for translations in self.region_translations:
            yield from translations.entries(self.source)

    def _with_texts(self, _: str, items: Sequence[Any]) -> Keyed:
        boxes = [item for item in items if isinstance(item, _Box)]
        added = [item for item in items if not isinstance(item, _Box)]
        further = [texts for _, captions in added for texts in captions.items()]
        for item in boxes:
            texts = gathered([*item.region.captions.items(), *further])
            yield item.image, item._replace(region=replace(item.region, captions=texts))
        for place, _ in added if not boxes else ():
            yield unmatched(place, self.source, "a region with this id")

    def _boxes_of(self, _: str, entry: Any) -> Iterator[tuple[str, _Box]]:
        entry = mapping(entry, "an image's regions or objects")
        image = identifier(entry.get("image_id", entry.get("id"))) or refuse("line_broken", "image_id", "none")
        for item in listed(entry.get("regions"), "a list of regions"):
            phrases = [text(mapping(item, "a region").get("phrase"), "a phrase")]
            yield self._box(item, "region_id", image, ("x", "y", "width", "height"), phrases)
        # attributes.json holds objects under the name "attributes", each with its own list "attributes".
        for item in listed(entry.get("objects", entry.get("attributes")), "a list of objects"):
            names = [text(name, "a name") for name in listed(mapping(item, "an object").get("names", ""), "names")]
            words = [text(word, "an attribute") for word in listed(item.get("attributes"), "attributes")]
            phrases = [f"{word} {name}" for name in names for word in words] or names
            yield self._box(item, "object_id", image, ("x", "y", "w", "h"), phrases)

    def _box(
        self, item: Mapping[str, Any], id_name: str, image: str, sides: Sequence[str], phrases: list[str]
    ) -> tuple[str, _Box]:
        identity = identifier(item.get(id_name)) or refuse("line_broken", id_name, "none")
        region = Region(box=box([item.get(side) for side in sides]), captions={self.language: phrases})
        return identity, _Box(image, id_name == "region_id", region)


class _Box(NamedTuple):
    image: str
    """Id of its image."""
    is_described: bool
    """It is a region with a phrase, not an object."""
    region: Region


def _sized(_: str, entry: Any) -> Iterator[tuple[str, Any]]:
    entry = mapping(entry, "image_id, width, height")
    identity = identifier(entry.get("image_id", entry.get("id"))) or refuse("line_broken", "image_id", "none")
    size = tuple(
        whole_number(entry.get(side), side) or refuse("line_broken", side, "0") for side in ("width", "height")
    )
    yield identity, {"size": size, "coco_id": identifier(entry.get("coco_id"))}
