"""Lines `NAME#N <TAB> caption`: the form of Flickr30k's .token file and of COCO-CN."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cclm.errors import DataError
from shards.corpora.lines import numbered_lines
from shards.corpora.refusal import guarded
from shards.corpora.rows import bad_row


def read_numbered_captions(name: str, path: Path) -> Iterator[tuple[str, tuple[str, str] | DataError]]:
    """Yield ("NAME:NUMBER", (the picture's name, caption))."""
    return guarded(name, _captions(path))


def _captions(path: Path) -> Iterator[tuple[int, tuple[str, str] | DataError]]:
    for number, line in numbered_lines(path):
        if isinstance(line, DataError):
            yield number, line
            continue
        name, tab, caption = line.partition("\t")
        picture, hash_sign, _ = name.rpartition("#")
        if tab and hash_sign and picture:
            yield number, (picture, caption)
        elif line.strip():
            yield number, bad_row("NAME#N, a tab, and a caption", "a line of another form")
