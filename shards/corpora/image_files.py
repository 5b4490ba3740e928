"""Pictures by name, in one of several folders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from shards.corpora.picture import LoadImage, load_file
from shards.corpora.refusal import refuse
from shards.guard import mistaken


def folders_of(images: Path | Sequence[Path]) -> tuple[Path, ...]:
    """Return the folders of pictures.

    Raises:
        ConfigError: one is not there. That is told at once, rather than once for each of its pictures.
    """
    folders = (images,) if isinstance(images, Path) else tuple(images)
    for folder in folders:
        if not folder.is_dir():
            mistaken("a folder of pictures", "no such folder", "Correct `images`.", folder)
    return folders


def image_in(folders: Sequence[Path], name: str) -> LoadImage:
    """Return what reads the picture `name` from the first folder that has it."""
    return partial(load_first, tuple(folders), name)


def load_first(folders: Sequence[Path], name: str) -> bytes:
    """Read a picture (reason image_missing). Devices and pipes are none: reading them might never end."""
    for folder in folders:
        path = folder / name
        if path.is_file():
            return load_file(path)
    return refuse("image_missing", f"{name} in {', '.join(map(str, folders))}", "no such file", name)
