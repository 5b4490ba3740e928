"""Visual Genome: region descriptions and objects, as boxes with texts in pixels of the stored picture.

region_descriptions.json   [{"id": 1, "regions": [{"region_id", "image_id", "phrase", "x", "y", "width", "height"}]}]
objects.json               [{"image_id": 1, "objects": [{"object_id", "names": ["clock"], "x", "y", "w", "h"}]}]
attributes.json            the same, with "attributes" in place of "objects", each with "attributes": ["green", "tall"]
image_data.json            [{"image_id": 1, "width": 800, "height": 600, "coco_id", "url", …}]

The picture's captions are the phrases of its regions (else the names of its objects), as in the published 4M.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cclm.types import Region
from shards.corpora.files import named_files
from shards.corpora.image_files import folders_of, picture_in
from shards.corpora.image_row import ImageRow, lazy_images
from shards.corpora.json_stream import json_items
from shards.corpora.refusal import first, refused
from shards.corpora.rows import BadRow
from shards.corpora.spill import grouped
from shards.corpora.translations import Translations
from shards.parts import LazyRecord, Part, file_stamp

_SUFFIXES: Final = (".json",)


@dataclass(frozen=True, kw_only=True)
class VisualGenome:
    """One part, with one draft per picture."""

    images: Path | Sequence[Path]
    """Folders of pictures: VG_100K and VG_100K_2; names are IMAGE_ID.jpg."""
    image_data: Path
    """image_data.json, also .gz: sizes of the annotated pictures, and COCO's ids."""
    regions: Path | Sequence[Path] = ()
    """region_descriptions.json."""
    objects: Path | Sequence[Path] = ()
    """objects.json, or attributes.json for texts such as "green clock"."""
    region_translations: Sequence[Translations] = ()
    """Further texts of regions; their `id` is a region_id (or an object_id)."""
    language: str = "en"
    """Of the annotations."""
    source: str = "visual-genome"
    """The corpus's name."""
    licence: str = "CC-BY-4.0"
    """Of the annotations; the pictures are from Flickr."""

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        folders_of(self.images)
        files = [*self._files(), *(path for one in self.region_translations for path in one.files().values())]
        return [Part(name="regions", read=self.read, stamp="-".join(map(file_stamp, files)))]

    def _files(self) -> list[Path]:
        paths = [path for paths in (self.regions, self.objects) for path in named_files(paths, _SUFFIXES).values()]
        return [self.image_data, *paths]

    def read(self) -> Iterator[LazyRecord]:
        """Yield one draft a picture; those without any box are refused (captions_missing)."""
        return lazy_images(self.rows())

    def rows(self) -> Iterator[ImageRow | LazyRecord]:
        """Yield the pictures, before they are read."""
        folders = folders_of(self.images)
        for identity, items in grouped(self._by_picture()):
            drafts = [item for item in items if isinstance(item, LazyRecord)]
            yield from drafts
            if len(drafts) < len(items):
                yield self._row(identity, [item for item in items if not isinstance(item, LazyRecord)], folders)

    def _row(self, identity: str, items: Sequence[Any], folders: Sequence[Path]) -> ImageRow | LazyRecord:
        data = next((item for item in items if isinstance(item, Mapping)), None)
        boxes = [item for item in items if isinstance(item, tuple)]
        where = f"{self.source} image_id {identity}"
        if data is None or not boxes:
            return refused(
                key=f"{self.source}-{identity}",
                source=self.source,
                reason="captions_missing" if data is not None else "image_unlisted",
                expected="a picture in image_data.json, with regions or objects",
                got="no box" if data is not None else "no entry there",
                where=where,
            )
        # Phrases of regions describe a scene; names of objects stand in for them only where there are none.
        described = [box for box in boxes if box[0] == "regions"] or boxes
        captions: dict[str, list[str]] = {}
        for _, _, texts in described:
            for language, of_one in texts.items():
                captions.setdefault(language, []).extend(of_one)
        coco = data.get("coco_id")
        return ImageRow(
            key=f"{self.source}-{identity}",
            image=picture_in(folders, f"{identity}.jpg"),
            captions=captions,
            source=self.source,
            licence=self.licence,
            # Half of the pictures are COCO's: the same one must not be its own negative.
            identity=f"coco-{coco}" if coco else f"vg-{identity}",
            ids={"image_id": identity} | ({"coco_id": str(coco)} if coco else {}),
            regions=[Region(box=box, captions=texts) for _, box, texts in boxes],
            annotated_size=(int(data["width"]), int(data["height"])),
            where=where,
        )

    def _by_picture(self) -> Iterator[tuple[str, Any]]:
        for number, entry in enumerate(json_items(self.image_data, "item"), 1):
            identity = None if isinstance(entry, BadRow) else entry.get("image_id", entry.get("id"))
            if isinstance(entry, BadRow) or identity is None or not entry.get("width") or not entry.get("height"):
                bad = entry if isinstance(entry, BadRow) else BadRow(first(entry), expected="image_id, width, height")
                yield f"\0d{number}", bad.draft(self.image_data.name, number, self.source)
            else:
                yield str(identity), {name: entry.get(name) for name in ("width", "height", "coco_id")}
        if not self.region_translations:
            yield from ((image, box) for _, image, box in self._boxes())
            return
        for _, items in grouped(self._boxes_and_texts()):
            yield from self._translated(items)

    def _translated(self, items: Sequence[Any]) -> Iterator[tuple[str, Any]]:
        boxes = [item for item in items if item[0] == "box"]
        texts = [item for item in items if item[0] == "text"]
        for _, image, box in boxes:
            if isinstance(box, LazyRecord):
                yield image, box
                continue
            added = {language: list(of_one) for language, of_one in box[2].items()}
            for _, _, captions in texts:
                for language, of_one in captions.items():
                    added.setdefault(language, []).extend(of_one)
            yield image, (box[0], box[1], added)
        for _, place, captions in texts if not boxes else ():
            unmatched = refused(
                key=f"translation {place}",
                source=self.source,
                reason="translation_unmatched",
                expected="a region with this id",
                got=f"none, for {first(captions)}",
                where=place,
            )
            yield f"\0{place}", unmatched

    def _boxes_and_texts(self) -> Iterator[tuple[str, Any]]:
        for identity, image, box in self._boxes():
            yield identity, ("box", image, box)
        for translations in self.region_translations:
            for place, identity, captions in translations.entries():
                if isinstance(captions, BadRow):
                    name, _, number = place.rpartition(":")
                    draft = captions.draft(name, int(number), self.source)
                    yield f"\0{place}", ("box", f"\0{place}", draft)
                else:
                    yield identity, ("text", place, captions)

    def _boxes(self) -> Iterator[tuple[str, str, Any]]:
        """Yield (id of the region or object, id of its picture, (kind, box, texts)); refusals likewise."""
        for path in self._files()[1:]:
            for number, entry in enumerate(json_items(path, "item"), 1):
                try:
                    if isinstance(entry, BadRow):
                        raise ValueError(entry.why)
                    found = list(self._boxes_of(entry))
                except (KeyError, TypeError, ValueError) as error:
                    tail = isinstance(entry, BadRow) and entry.tail
                    bad = BadRow(
                        f"{type(error).__name__} {error}", tail=tail, expected="a picture's regions or objects"
                    )
                    place = f"\0{path.name}:{number}"
                    yield place, place, bad.draft(path.name, number, self.source)
                else:
                    yield from found

    def _boxes_of(self, entry: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
        image = str(entry["image_id"] if "image_id" in entry else entry["id"])
        for region in entry.get("regions", ()):
            box = tuple(float(region[name]) for name in ("x", "y", "width", "height"))
            yield str(region["region_id"]), image, ("regions", box, {self.language: [region["phrase"]]})
        # attributes.json holds objects under the name "attributes", each with its own list "attributes".
        for thing in entry.get("objects", entry.get("attributes", ())):
            box = tuple(float(thing[name]) for name in ("x", "y", "w", "h"))
            names = [f"{word} {name}" for name in thing["names"] for word in thing.get("attributes") or ()] or list(
                thing["names"]
            )
            yield str(thing["object_id"]), image, ("objects", box, {self.language: names})
