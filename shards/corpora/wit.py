"""WIT, Wikipedia's pictures with texts in 100 languages; rows with one image_url are one picture.

wit_v1.train.all-00000-of-00010.tsv.gz   language, page_url, image_url, …, caption_reference_description, …
test_bg.jsonl                            IGLUE's rows: language, image_url, caption_reference_description, …

Pictures: downloaded by `python -m shards download`, or out of Kaggle's files of pixels, which a build joins by URL:

train_image_pixels_part-00000.csv        image_url <TAB> picture in base64 [<TAB> metadata_url]; unpacked
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from shards.corpora.files import line_ranges, lines_in, named_files, plain_suffix
from shards.corpora.image_row import ImageRow, key_of, lazy_images
from shards.corpora.picture import load_span
from shards.corpora.refusal import first, refuse, refused
from shards.corpora.rows import BadRow, read_rows
from shards.corpora.spill import grouped
from shards.corpora.url_rows import UrlRow, downloaded_parts
from shards.parts import LazyRecord, Part, Skipped, file_stamp

_SUFFIXES: Final = (".tsv", ".jsonl")
_NEEDED: Final = ("language", "image_url")


@dataclass(frozen=True, kw_only=True)
class Wit:
    """The texts, and where the pictures are: `downloads` or `pixels`."""

    path: Path | Sequence[Path]
    """Files (.tsv.gz, .jsonl), folders or patterns."""
    downloads: Path | None = None
    """Folder of pictures that `python -m shards download` fetches."""
    pixels: Path | Sequence[Path] = ()
    """Files of pixels, in place of downloads; not compressed, because pictures are read by position."""
    fields: Sequence[str] = ("caption_reference_description",)
    """Columns of texts: also caption_alt_text_description, caption_attribution_description, page_title, …"""
    languages: Sequence[str] = ()
    """Given: rows in other languages are passed over, and counted."""
    source: str = "wit"
    """The corpus's name."""
    licence: str = "unknown"
    """The pictures' licences differ; Wikimedia Commons says which."""

    def parts(self) -> Sequence[Part]:
        """Find what was downloaded, or the files of pixels."""
        if not self.pixels:
            return [*downloaded_parts(self, source=self.source, licence=self.licence), *self._parts_skipped()]
        files = [*self._tables().values(), *named_files(self.pixels, ()).values()]
        return [Part(name="joined", read=self.read, stamp="-".join(map(file_stamp, files)))]

    def _parts_skipped(self) -> list[Part]:
        """Return parts without drafts that count the rows which the download has passed over."""
        tables = self._tables() if self.languages else {}
        return [
            Part(name=f"languages of {name}", read=partial(self._skipped, name, path), stamp=file_stamp(path))
            for name, path in tables.items()
        ]

    def _skipped(self, name: str, path: Path) -> Iterator[Skipped]:
        passed: Counter[str] = Counter()
        for _ in self._captions_in(name, path, passed):
            pass
        yield Skipped(source=self.source, rows=passed)

    def _tables(self) -> dict[str, Path]:
        return named_files(self.path, _SUFFIXES)

    def list_stamp(self) -> str:
        """Return size and time of the files, and which of their texts are wanted."""
        stamps = [file_stamp(path) for path in self._tables().values()]
        return json.dumps([stamps, list(self.fields), list(self.languages)])

    def url_rows(self) -> Iterator[UrlRow]:
        """Yield one entry a picture, with the captions of all its rows."""
        for url, items in grouped(self._captions(Counter())):
            yield from (UrlRow(url="", captions={}, bad=item) for item in items if isinstance(item, str))
            rows = [item for item in items if isinstance(item, tuple)]
            if rows:
                yield UrlRow(url=url, captions=_gathered(rows), identity=key_of(url))

    def read(self) -> Iterator[LazyRecord | Skipped]:
        """Yield one draft a picture of the texts; those without pixels are refused (image_missing)."""
        passed: Counter[str] = Counter()
        yield from lazy_images(self._rows(passed))
        yield Skipped(source=self.source, rows=passed)

    def _rows(self, passed: Counter[str]) -> Iterator[ImageRow | LazyRecord]:
        for url, items in grouped(self._captions_and_pixels(passed)):
            rows = [item for item in items if isinstance(item, tuple)]
            spans = [item for item in items if isinstance(item, partial)]
            bad = [item for item in items if isinstance(item, str)]
            for place in bad:
                key, _, why = place.partition(": ")
                yield refused(
                    key=key, source=self.source, reason="line_broken", expected="a row of WIT", got=why, where=key
                )
            if rows:
                yield ImageRow(
                    key=key_of(url),
                    image=spans[0] if spans else partial(refuse, "image_missing", "its pixels", "none", url),
                    captions=_gathered(rows),
                    source=self.source,
                    licence=self.licence,
                    identity=key_of(url),
                    ids={"url": url},
                    where=url,
                )

    def _captions_and_pixels(self, passed: Counter[str]) -> Iterator[tuple[str, Any]]:
        yield from self._captions(passed)
        for name, path in named_files(self.pixels, ()).items():
            for start, stop in line_ranges(path, path.stat().st_size or 1):
                for offset, line in lines_in(path, start, stop):
                    url = line[: line.find(b"\t")].decode("utf-8", "replace")
                    yield url, partial(load_pixels, path, offset, len(line), f"{name}@{offset}")

    def _captions(self, passed: Counter[str]) -> Iterator[tuple[str, tuple[str, list[str]] | str]]:
        for name, path in self._tables().items():
            yield from self._captions_in(name, path, passed)

    def _captions_in(
        self, name: str, path: Path, passed: Counter[str]
    ) -> Iterator[tuple[str, tuple[str, list[str]] | str]]:
        """Yield (URL, (language, texts)); what cannot be read has a URL of its own, and is a sentence.

        Rows in languages that are not wanted are added to `passed`.
        """
        quoted = plain_suffix(path) == ".tsv"
        for number, row in read_rows(path, needed=(*_NEEDED, *self.fields), quoted=quoted or None):
            place = f"{name}:{number}"
            if isinstance(row, BadRow):
                yield f"\0{place}", f"{place}: {row.why}"
                continue
            url, language = row.get("image_url"), row.get("language")
            texts = [row[field] for field in self.fields if isinstance(row.get(field), str) and row[field].strip()]
            if not isinstance(url, str) or not isinstance(language, str) or not url or not language:
                yield f"\0{place}", f"{place}: expected image_url and language, got {first(row)}"
            elif self.languages and language not in self.languages:
                passed[language] += 1
            elif not texts:
                yield f"\0{place}", f"{place}: no text in {', '.join(self.fields)}"
            else:
                yield url, (language, texts)


def _gathered(rows: Sequence[tuple[str, list[str]]]) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for language, texts in rows:
        captions.setdefault(language, []).extend(texts)
    return captions


def load_pixels(path: Path, offset: int, size_bytes: int, where: str) -> bytes:
    """Read a picture out of a line of pixels (reason base64_broken)."""
    cells = load_span(path, offset, size_bytes).rstrip(b"\r\n").split(b"\t")
    try:
        return base64.b64decode(cells[1], validate=True)
    except (IndexError, binascii.Error, ValueError) as error:
        refuse("base64_broken", "a URL, a tab and a picture in base64", str(error), where)
