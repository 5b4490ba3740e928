"""Large JSON documents, one element of an array at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cclm.errors import DataError
from shards.corpora.lines import open_plain
from shards.corpora.refusal import guarded
from shards.guard import optional_library


def json_items(
    name: str, path: Path, prefix: str, *, told_elsewhere: bool = False
) -> Iterator[tuple[str, Any | DataError]]:
    """Yield ("NAME:NUMBER", element) of an array: "annotations.item", or "item" where the document is one.

    Args:
        name: of the file, for places.
        path: the file.
        prefix: where the array is, in ijson's words.
        told_elsewhere: a document that breaks off ends in silence: another array of it is read, too, and says so.
    """
    for place, item in guarded(name, enumerate(json_values(path, prefix), 1)):
        if not (told_elsewhere and isinstance(item, DataError)):
            yield place, item


def json_values(path: Path, prefix: str) -> Iterator[Any]:
    """Yield the elements of an array."""
    ijson = optional_library("ijson", "it reads large JSON files")
    with open_plain(path) as file:
        if file.peek(3)[:3] == b"\xef\xbb\xbf":  # type: ignore[attr-defined]
            file.read(3)
        yield from ijson.items(file, prefix, use_float=True)
