"""Large JSON documents, one element of an array at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cclm.errors import MissingDependencyError
from shards.corpora.files import BROKEN_STREAM, open_plain
from shards.corpora.rows import BadRow


def json_items(path: Path, prefix: str) -> Iterator[dict[str, Any] | BadRow]:
    """Yield the objects of an array: "annotations.item", or "item" where the document is one.

    A document that breaks off ends with a BadRow; elements that are not objects are BadRows.
    """
    for item in json_values(path, prefix):
        yield item if isinstance(item, (dict, BadRow)) else BadRow(f"a JSON {type(item).__name__}")


def json_values(path: Path, prefix: str) -> Iterator[Any]:
    """Yield the elements of an array, of any kind; a document that breaks off ends with a BadRow."""
    try:
        import ijson
    except ImportError as error:
        raise MissingDependencyError(
            expected="the package ijson (it reads large JSON files)", got="no such package", do="pip install ijson"
        ) from error
    with open_plain(path) as file:
        try:
            yield from ijson.items(file, prefix, use_float=True)
        except (ijson.JSONError, UnicodeDecodeError, *BROKEN_STREAM) as error:
            yield BadRow(" ".join(str(error).split())[:200], tail=True)
