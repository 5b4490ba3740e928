"""Lines `NAME#N <TAB> caption`: the form of Flickr30k's .token file and of COCO-CN."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shards.corpora.files import numbered_lines
from shards.corpora.rows import BadRow


def read_numbered_captions(path: Path) -> Iterator[tuple[int, tuple[str, str] | BadRow]]:
    """Yield (line number, (the picture's name, caption))."""
    for number, line in numbered_lines(path):
        if not isinstance(line, bytes):
            yield number, BadRow(str(line), tail=True)
            return
        try:
            name, tab, caption = line.decode("utf-8-sig" if number == 1 else "utf-8").partition("\t")
        except UnicodeDecodeError as error:
            yield number, BadRow(str(error))
            continue
        picture, hash_sign, _ = name.rpartition("#")
        if tab and hash_sign and picture:
            yield number, (picture, caption)
        elif line.strip():
            yield number, BadRow("a line of another form", expected="NAME#N, a tab, and a caption")
