"""Corpora that are lists of URLs: what they have in common before and after the download, and the lists themselves.

list of URLs --url_rows--> `python -m shards download RECIPE` --> DOWNLOADS/00000.tar, 00000.parquet --parts--> records

Train_GCC-training.tsv    caption <TAB> url          CC3M: `columns: [caption, url]`, without a header line
cc12m.tsv                 url <TAB> caption
part-00000.parquet        URL, TEXT, LANGUAGE, LICENSE, …       LAION
SBU_captioned_photo_dataset_urls.txt, SBU_captioned_photo_dataset_captions.txt     line n belongs to line n
sbu-captions-all.json     {"image_urls": ["…"], "captions": ["…"], "user_ids": ["…"]}

A build never touches the network: it reads the folder of downloads, and gives the same bytes each time.

WIT, Wikipedia's images with texts in 100 languages; rows with one image_url are one image. Its images are downloaded,
or lie in Kaggle's files of pixels, which a build joins by URL:

wit_v1.train.all-00000-of-00010.tsv.gz   language, page_url, image_url, …, caption_reference_description, …
test_bg.jsonl                            IGLUE's rows: language, image_url, caption_reference_description, …
train_image_pixels_part-00000.csv        image_url <TAB> image in base64 [<TAB> metadata_url]; unpacked
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.annotations.captions import WIT_CAPTION, url_and_texts
from cclm.annotations.images import key_of
from cclm.errors import DataError
from cclm.files.atomic import file_sha256
from cclm.languages import language_tag
from cclm.rows.cells import Captions, captions, gathered, identifiers, language, mapping, optional, text
from cclm.rows.guard import guarded, mistaken, refuse, shown
from cclm.rows.lines import aligned_lines, lines_in, plain_stem, plain_suffix
from cclm.rows.tables import TABLE_SUFFIXES, Row, json_values, read_rows
from shards.corpora.files import ENGLISH, LanguageTag, named_files, note_left_out, note_read, part_of_each
from shards.corpora.image_corpus import ImageCorpus, ImageRow, ImageRows, load_span
from shards.corpora.image_tables import ColumnImages
from shards.corpora.webdataset import found_tables, image_of, table_rows
from shards.parts import Keyed, LazyRecord, Part, Skipped, each, file_stamp, joined

COMPLETE_NAME: Final = "complete.json"
"""Written when every URL of the list was tried."""
_URLS: Final = "SBU_captioned_photo_dataset_urls.txt"
_CAPTIONS: Final = "SBU_captioned_photo_dataset_captions.txt"
_JSON: Final = "sbu-captions-all.json"
TABLE_COLUMNS: Final = ("url", "message", "captions", "ids", "licence", "identity")


@dataclass(frozen=True, kw_only=True)
class UrlRow:
    """An image that is not here yet."""

    url: str
    captions: Captions
    ids: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    identity: str = ""
    bad: str = ""
    """Given: this entry of the list cannot be read, and why; it is counted, not fetched."""


@dataclass(frozen=True, kw_only=True)
class Downloadable(ImageCorpus):
    """A corpus whose images have to be fetched: `python -m shards download` reads its list, a build what came."""

    downloads: Path | None
    """Folder of the images that `python -m shards download` fetches."""

    def entries(self) -> Iterator[UrlRow | LazyRecord | Skipped]:
        """Yield the list's entries and refusals, always in the same order."""
        raise NotImplementedError

    def list_files(self) -> Iterable[Path]:
        """Return the files of the list."""
        raise NotImplementedError

    def list_stamp(self, stamp_of: Callable[[Path], str] = file_stamp) -> str:
        """Return what changes when the list does: the stamps of its files, and what is taken from them."""
        return "-".join(map(stamp_of, self.list_files()))

    def url_rows(self) -> Iterator[UrlRow]:
        """Yield the list's entries; refusals become bad ones, what was skipped is no entry."""
        for item in self.entries():
            if isinstance(item, UrlRow):
                yield item
            elif isinstance(item, LazyRecord):
                try:
                    item.make()
                except DataError as error:
                    yield UrlRow(url="", captions={}, bad=f"{error.where}: expected {error.expected}, got {error.got}")

    def list_record(self) -> dict[str, str]:
        """Return what tells later whether this is still the same list (see `is_list`)."""
        return {"stamp": self.list_stamp(), "sha256": self.list_stamp(file_sha256)}

    def is_list(self, record: Mapping[str, Any]) -> bool:
        """Tell whether a record is of this list: by size and time of its files, else (touched, copied) by content."""
        return record["stamp"] == self.list_stamp() or record.get("sha256") == self.list_stamp(file_sha256)

    def parts(self) -> Sequence[Part]:
        """Return one part per tar that was downloaded (ConfigError: none yet, not everything, or another list)."""
        folder, complete = self.downloads, self.downloads / COMPLETE_NAME if self.downloads else None
        if folder is None or complete is None or not complete.exists():
            do = "Run `python -m shards download RECIPE.yaml` first."
            mistaken("downloaded images", "none, or a download that has not seen the whole list yet", do, folder)
        if not self.is_list(json.loads(complete.read_bytes())):
            do = "Choose another `downloads`, or remove it and download again."
            mistaken("the downloads of this list", "those of another list, or of one that has changed", do, folder)
        note_read([complete, folder / "list.json"])
        return self.parts_of_each(found_tables(folder), self._downloaded)

    def _downloaded(self, name: str, table: Path) -> ImageRows:
        return each(table_rows(name, table, TABLE_COLUMNS), self._image, self.source)

    def _image(self, place: str, row: Row) -> Iterator[ImageRow]:
        message = f"{row['message']} ({row['url']})"
        image = image_of(row, message, "`python -m shards download` tries again what may pass; leave the others out.")
        ids = mapping(json.loads(row["ids"]), "ids")
        yield self.image_row(
            key=key_of(f"{self.source}-{row['key']}"),
            image=image,
            captions=captions(json.loads(row["captions"])),
            licence=optional(row["licence"]),
            identity=optional(row["identity"]),
            ids=identifiers(row, ("key", "url")) | identifiers(ids, ids),
            where=place,
        )


@dataclass(frozen=True, kw_only=True)
class UrlList(ColumnImages, Downloadable):
    """Tables of URLs with captions. Ids: `url`, `key` (of the download), `row` (file and number), and those named."""

    path: Path | Sequence[Path]
    """Files (.tsv, .csv, .jsonl, also compressed, .parquet, .arrow), folders or patterns."""
    url: str = "url"
    """Column of the URL."""
    columns: Sequence[str] = ()
    """All columns of a TSV or CSV file without a header line."""

    def list_files(self) -> Iterable[Path]:
        """Return the tables."""
        return named_files(self.path, TABLE_SUFFIXES).values()

    def entries(self) -> Iterator[UrlRow | LazyRecord]:
        """Yield one entry a row."""
        for name, path in named_files(self.path, TABLE_SUFFIXES).items():
            rows = read_rows(name, path, needed=self.wanted(self.url), columns=self.columns)
            yield from each(rows, self._entry, self.source)

    def _entry(self, place: str, row: Row) -> Iterator[UrlRow]:
        url = optional(row.get(self.url), "a URL")
        if not url:
            refuse("line_broken", "a URL", f"none in {shown(row)}")
        yield UrlRow(url=url, **self.of_row(row, row=place))


@dataclass(frozen=True, kw_only=True)
class Sbu(Downloadable):
    """SBU captioned photos, a million URLs of Flickr, in the two forms that they are handed out in."""

    folder: Path
    """Holds the two text files, or the JSON file (also compressed)."""
    language: LanguageTag = ENGLISH
    """Of the captions."""
    source: str = "sbu"

    def list_files(self) -> list[Path]:
        """Return the two text files, or the JSON file."""
        there = named_files(self.folder, (".txt", ".json"))
        here = [path for path in there.values() if path.parent == self.folder]
        by_name = {f"{plain_stem(path)}{plain_suffix(path)}": path for path in here}
        for names in ((_URLS, _CAPTIONS), (_JSON,)):
            if by_name.keys() >= {*names}:
                files = [by_name[name] for name in names]
                for name, path in there.items():
                    if path not in files:
                        note_left_out(path, "another list", name)
                return files
        return mistaken(f"{_URLS} and {_CAPTIONS}, or {_JSON}", "neither", "Correct `folder`.", self.folder)

    def entries(self) -> Iterator[UrlRow | LazyRecord]:
        """Yield one entry an image; where one list is longer than the other, its further entries are refused."""
        files = self.list_files()
        if len(files) == 1:
            both = [json_values(files[0], prefix) for prefix in ("image_urls.item", "captions.item")]
            numbered: Iterator[tuple[int, Any]] = enumerate(itertools.zip_longest(*both), 1)
        else:
            numbered = aligned_lines([("the URLs", files[0], ""), ("the captions", files[1], "")])
        return each(guarded("entry", numbered), self._row, self.source)

    def _row(self, place: str, entry: Sequence[Any]) -> Iterator[UrlRow]:
        url, caption = (text(cell, "a URL and a caption").strip() for cell in entry)
        if not url:
            refuse("line_broken", "a URL and a caption", "no URL")
        yield UrlRow(url=url, captions={self.language: [caption]}, ids={"row": place.rpartition(":")[2]})


_SUFFIXES: Final = (".tsv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class Wit(Downloadable):
    """The texts, and where the images are: `downloads` or `pixels`. Licences differ; Wikimedia Commons says which."""

    path: Path | Sequence[Path]
    """Files (.tsv.gz, .jsonl), folders or patterns."""
    downloads: Path | None = None
    pixels: Path | Sequence[Path] = ()
    """Files of pixels, in place of downloads; not compressed, because images are read by position."""
    fields: Sequence[str] = (WIT_CAPTION,)
    """Columns of texts: also caption_alt_text_description, caption_attribution_description, page_title, …"""
    languages: Sequence[LanguageTag] = ()
    """Given: rows in other languages are skipped, and counted."""
    source: str = "wit"

    def parts(self) -> Sequence[Part]:
        """Find what was downloaded, or the files of pixels."""
        if self.pixels:
            files = [*self._tables().values(), *named_files(self.pixels, ()).values()]
            return self.part_of_all("joined", self.rows, files)
        parts = super().parts()
        # The download has skipped rows, too: these parts yield nothing but their number.
        counts = {f"languages of {name}": path for name, path in self._tables().items() if self.languages}
        return [*parts, *part_of_each(counts, self._skipped)]

    def _skipped(self, name: str, path: Path) -> Iterator[Skipped]:
        return (item for item in self._captions_in(name, path) if isinstance(item, Skipped))

    def _tables(self) -> dict[str, Path]:
        return named_files(self.path, _SUFFIXES)

    def list_stamp(self, stamp_of: Callable[[Path], str] = file_stamp) -> str:
        """Return the stamps of the files, and which of their texts are wanted."""
        stamps = [stamp_of(path) for path in self._tables().values()]
        return json.dumps([stamps, list(self.fields), list(self.languages)])

    def entries(self) -> Iterator[UrlRow | LazyRecord | Skipped]:
        """Yield one entry an image, with the captions of all its rows."""
        return joined(self._captions(), self._url_row, self.source)

    def _url_row(self, url: str, items: Sequence[tuple[str, list[str]]]) -> Iterator[UrlRow]:
        yield UrlRow(url=url, captions=gathered(items), identity=key_of(url))

    def rows(self) -> ImageRows:
        """Yield the images of the texts; those without pixels are refused (image_missing)."""
        return joined(self._captions_and_pixels(), self._row, self.source)

    def _row(self, url: str, items: Sequence[Any]) -> Iterator[ImageRow]:
        texts = [item for item in items if isinstance(item, tuple)]
        spans = [item for item in items if isinstance(item, partial)]
        if texts:
            yield self.image_row(
                key=key_of(url),
                image=spans[0] if spans else partial(refuse, "image_missing", "its pixels", "none", url),
                captions=gathered(texts),
                identity=key_of(url),
                ids={"url": url},
                where=url,
            )

    def _captions_and_pixels(self) -> Keyed:
        yield from self._captions()
        for name, path in named_files(self.pixels, ()).items():
            for offset, beginning, size in lines_in(path):
                url = beginning.removeprefix(b"\xef\xbb\xbf").partition(b"\t")[0].decode("utf-8", "replace")
                yield url, partial(load_pixels, path, offset, size, f"{name}@{offset}")

    def _captions(self) -> Keyed:
        for name, path in self._tables().items():
            yield from self._captions_in(name, path)

    def _captions_in(self, name: str, path: Path) -> Keyed:
        rows = read_rows(name, path, needed=("language", "image_url", *self.fields), quoted=True)
        return each(rows, self._texts, self.source)

    def _texts(self, _: str, row: Row) -> Keyed:
        """Yield (URL, (language, texts)); rows in languages that are not wanted are skipped."""
        url, name, cells = url_and_texts(row, self.fields)
        if self.languages and language_tag(name) not in self.languages:
            yield Skipped(source=self.source, rows={language_tag(name) or name: 1})
            return
        texts = [cell for cell in cells if cell.strip()]
        if not texts:
            refuse("line_broken", f"a text in {', '.join(self.fields)}", "none")
        yield url, (language(name), texts)


def load_pixels(path: Path, offset: int, size_bytes: int, where: str) -> bytes:
    """Read an image out of a line of pixels (reason base64_broken)."""
    cells = load_span(path, offset, size_bytes).rstrip(b"\r\n").split(b"\t")
    try:
        return base64.b64decode(cells[1], validate=True)
    except (IndexError, binascii.Error, ValueError) as error:
        refuse("base64_broken", "a URL, a tab and an image in base64", str(error), where)
