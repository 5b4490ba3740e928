"""Which corpora a recipe may name. To bring your own: write a function that returns parts, and add a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from cclm.types import View
from shards.corpora.emoji import emoji_images, emoji_names
from shards.corpora.folder import image_folder
from shards.corpora.pairs import pair_file
from shards.draft import Part

CORPORA: Final[dict[str, tuple[View, Callable[..., Sequence[Part]]]]] = {
    "emoji_images": (View.IMAGE_TEXT, emoji_images),
    "emoji_names": (View.TEXT_PAIR, emoji_names),
    "image_folder": (View.IMAGE_TEXT, image_folder),
    "pair_file": (View.TEXT_PAIR, pair_file),
}
"""Name in a recipe -> (the view of its records, the function). A recipe's `options` are the function's arguments."""
