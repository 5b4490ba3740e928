"""Which corpora a recipe may name. To bring your own: write a class with its options, and add a line here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from cclm.files.reading import typed_values
from cclm.types import View
from shards.corpora.coco import AlignedLines, Coco, Flickr30k, VisualGenome
from shards.corpora.emoji import EmojiImages, EmojiNames
from shards.corpora.image_tables import ImageFolder, ParquetImages
from shards.corpora.pair_file import MarginFile, MosesPairs, PairFile, Tatoeba
from shards.corpora.published_lines import PublishedImages, PublishedPairs
from shards.corpora.translation_memories import Gettext, GnomeDocs, Tmx
from shards.corpora.url_list import Sbu, UrlList, Wit
from shards.corpora.webdataset import Img2dataset, Webdataset
from shards.parts import Part


class Corpus(Protocol):
    """A frozen keyword-only dataclass: its fields are a recipe's `options`."""

    def parts(self) -> Sequence[Part]:
        """Return the pieces that are read on their own, in a fixed order (ConfigError: not what the options say)."""
        ...


CORPORA: Final[dict[str, tuple[View, type[Corpus]]]] = {
    "emoji_images": (View.IMAGE_TEXT, EmojiImages),
    "emoji_names": (View.TEXT_PAIR, EmojiNames),
    "image_folder": (View.IMAGE_TEXT, ImageFolder),
    "pair_file": (View.TEXT_PAIR, PairFile),
    "aligned_lines": (View.IMAGE_TEXT, AlignedLines),
    "coco": (View.IMAGE_TEXT, Coco),
    "flickr30k": (View.IMAGE_TEXT, Flickr30k),
    "img2dataset": (View.IMAGE_TEXT, Img2dataset),
    "parquet_images": (View.IMAGE_TEXT, ParquetImages),
    "published_images": (View.IMAGE_TEXT, PublishedImages),
    "sbu": (View.IMAGE_TEXT, Sbu),
    "url_list": (View.IMAGE_TEXT, UrlList),
    "visual_genome": (View.IMAGE_TEXT, VisualGenome),
    "webdataset": (View.IMAGE_TEXT, Webdataset),
    "wit": (View.IMAGE_TEXT, Wit),
    "gettext": (View.TEXT_PAIR, Gettext),
    "gnome_docs": (View.TEXT_PAIR, GnomeDocs),
    "margin_file": (View.TEXT_PAIR, MarginFile),
    "moses": (View.TEXT_PAIR, MosesPairs),
    "published_pairs": (View.TEXT_PAIR, PublishedPairs),
    "tatoeba": (View.TEXT_PAIR, Tatoeba),
    "tmx": (View.TEXT_PAIR, Tmx),
}
"""Name in a recipe -> (the view of its records, the class)."""
DOWNLOADABLE: Final = (Sbu, UrlList, Wit)
"""Those whose images `python -m shards download` fetches."""


def corpus_of(name: str, options: Mapping[str, Any]) -> Corpus:
    """Return a corpus with a recipe's options (ConfigError: one of another type, or one that is missing or unknown)."""
    kind: Any = CORPORA[name][1]
    expected = f"options of {kind.__name__} as its file in shards/corpora/ explains them"
    do = "Correct them; docs/corpora.md has an example of each corpus."
    corpus: Corpus = typed_values(kind, options, where=name, expected=expected, do=do)
    return corpus
