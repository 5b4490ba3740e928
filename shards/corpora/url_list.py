"""Plain lists of URLs with captions: CC3M and CC12M's TSV files, LAION's Parquet, any CSV.

Train_GCC-training.tsv    caption <TAB> url          `columns: [caption, url]`, without a header line
cc12m.tsv                 url <TAB> caption
part-00000.parquet        URL, TEXT, LANGUAGE, LICENSE, …
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.corpora.caption_columns import CaptionColumns
from shards.corpora.cells import identifiers, optional
from shards.corpora.files import named_files
from shards.corpora.refusal import each, refuse
from shards.corpora.rows import TABLE_SUFFIXES, Row, read_rows
from shards.corpora.url_rows import Downloadable, UrlRow, url_rows_of
from shards.guard import shown
from shards.parts import file_stamp


@dataclass(frozen=True, kw_only=True)
class UrlList(Downloadable):
    """Lists of URLs; `python -m shards download` fetches them, and the build reads what it fetched."""

    path: Path | Sequence[Path]
    """Files (.tsv, .csv, .jsonl, also compressed, .parquet, .arrow), folders or patterns."""
    captions: CaptionColumns
    """The columns of captions."""
    url: str = "url"
    """Column of the URL."""
    columns: Sequence[str] = ()
    """All columns of a TSV or CSV file without a header line."""
    ids: Sequence[str] = ()
    """Columns to keep as ids, beside `url`, `key` (of the download) and `row` (file and number)."""
    licence_column: str = ""
    """Column of the licence, where rows differ."""

    def list_stamp(self, stamp_of: Callable[[Path], str] = file_stamp) -> str:
        """Return the stamps of the files."""
        return "-".join(map(stamp_of, named_files(self.path, TABLE_SUFFIXES).values()))

    def url_rows(self) -> Iterator[UrlRow]:
        """Yield one entry a row."""
        wanted = [self.url, *self.captions.columns(), *self.ids, self.licence_column]
        needed = [column for column in dict.fromkeys(wanted) if column]
        for name, path in named_files(self.path, TABLE_SUFFIXES).items():
            rows = read_rows(name, path, needed=needed, columns=self.columns)
            yield from url_rows_of(each(rows, self._row, self.source))

    def _row(self, place: str, row: Row) -> Iterator[UrlRow]:
        url = optional(row.get(self.url), "a URL")
        if not url:
            refuse("line_broken", "a URL", f"none in {shown(row)}")
        yield UrlRow(
            url=url,
            captions=self.captions.captions_of(row),
            ids={"row": place} | identifiers(row, self.ids),
            licence=optional(row.get(self.licence_column), "a licence"),
        )
