"""WIT, Wikipedia's images with texts in 100 languages; rows with one image_url are one image.

wit_v1.train.all-00000-of-00010.tsv.gz   language, page_url, image_url, …, caption_reference_description, …
test_bg.jsonl                            IGLUE's rows: language, image_url, caption_reference_description, …

Images: downloaded by `python -m shards download`, or out of Kaggle's files of pixels, which a build joins by URL:

train_image_pixels_part-00000.csv        image_url <TAB> image in base64 [<TAB> metadata_url]; unpacked
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.annotations.captions import WIT_CAPTION, url_and_texts
from cclm.annotations.images import key_of
from cclm.languages import language_tag
from cclm.rows.cells import gathered, language
from cclm.rows.guard import refuse
from cclm.rows.lines import lines_in
from cclm.rows.tables import Row, read_rows
from shards.corpora.cells import LanguageTag
from shards.corpora.entries import Keyed, each, joined
from shards.corpora.files import named_files, part_of_each
from shards.corpora.image_bytes import load_span
from shards.corpora.image_corpus import ImageRow, ImageRows
from shards.corpora.url_list import Downloadable, UrlRow
from shards.parts import LazyRecord, Part, Skipped, file_stamp

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
