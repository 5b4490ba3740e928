"""What retrieval is measured on: images with captions by language, of a shard set or of published annotation files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from cclm.annotations.images import Listing, find_image
from cclm.annotations.retrieval import SPLITS, Asked, Part, asked_in
from cclm.config import FineTuneConfig
from cclm.data.ledger import identity_hash
from cclm.errors import ConfigError
from cclm.shardfile.options import CacheConfig, is_remote
from cclm.shardfile.reader import ShardSet
from cclm.shardfile.remote import local_path, manifest_bytes, open_set
from cclm.shardfile.schema import MANIFEST_NAME
from cclm.types import Language, View


@dataclass(kw_only=True)
class Captions:
    """Texts of one language, and where they stand."""

    split: str
    data_file: str
    data_sha256: str
    hashes: tuple[str, ...] = ()
    """Of several files: of each."""
    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    identities: list[int] = field(default_factory=list)
    """Of their images."""

    def add(self, key: str, identity: int, texts: Sequence[str]) -> None:
        """Add the captions of an image."""
        self.ids += [f"{key}#{number}" for number in range(len(texts))]
        self.texts += texts
        self.identities += [identity] * len(texts)


@dataclass(frozen=True, kw_only=True)
class RetrievalSet:
    """Images, and their captions by language."""

    keys: Sequence[str]
    identities: Sequence[int]
    """Equal numbers show the same thing."""
    captions: Mapping[Language, Captions]
    image: Callable[[int], bytes]
    """Number → image file (DataError: it cannot be read)."""


def is_annotated(name: str, where: str) -> bool:
    """Return whether a set is a folder of annotation files: one that a benchmark names, without a manifest."""
    local = local_path(where)
    return name in SPLITS and local is not None and not (local / MANIFEST_NAME).exists()


def open_shards(where: str, cache: CacheConfig) -> ShardSet:
    """Open a shard set (ConfigError: it holds no images)."""
    shards = open_set(where, cache)
    if shards.view is not View.IMAGE_TEXT:
        got, do = shards.view.value, "Name another set."
        raise ConfigError(where=where, expected="a set of images", got=got, do=do)
    return shards


Read = tuple[list[str], list[int], dict[Language, Captions]]
"""Keys, identities and captions of a set."""


def sharded_set(
    where: str,
    cache: CacheConfig,
    captions_per_image: int | None,
    once: Callable[[Callable[[], Read]], Read] = lambda read: read(),
) -> RetrievalSet:
    """Read the captions of a shard set; its one split is called "test". `once` reads them, for all ranks maybe."""
    shards = open_shards(where, cache)
    places = [(shard, sample) for shard, count in enumerate(shards.samples_per_shard) for sample in range(count)]
    keys, identities, captions = once(lambda: _read(where, cache, shards, places, captions_per_image))

    def image(number: int) -> bytes:
        return shards.image_text(*places[number]).image

    return RetrievalSet(keys=keys, identities=identities, captions=captions, image=image)


def _read(
    where: str, cache: CacheConfig, shards: ShardSet, places: Sequence[tuple[int, int]], captions_per_image: int | None
) -> Read:
    digest = sha256(manifest_bytes(where, cache)).hexdigest()
    keys, identities, captions = list[str](), list[int](), dict[Language, Captions]()
    for place in places:
        record = shards.image_text(*place)
        keys.append(record.key)
        identities.append(identity_hash(record.identity or record.key))
        for language, texts in record.captions.items():
            if language not in captions:
                captions[language] = Captions(split="test", data_file=where, data_sha256=digest)
            captions[language].add(record.key, identities[-1], texts[:captions_per_image])
    return keys, identities, captions


def annotated_set(
    asked: Mapping[Language, Asked], images: Sequence[Path], captions_per_image: int | None
) -> RetrievalSet:
    """Put the languages of a benchmark together: an image that several have is one.

    Raises:
        DataError: no folder has an image (reason image_missing).
    """
    numbers, paths, captions, is_there = dict[str, int](), list[Path](), dict[Language, Captions](), Listing()
    for language, of in asked.items():
        files = ", ".join(str(path) for path in of.paths)
        found = Captions(split=of.split, data_file=files, data_sha256=of.sha256, hashes=of.hashes)
        captions[language] = found
        for row in of.rows:
            if numbers.setdefault(row.id, len(paths)) == len(paths):
                paths.append(find_image(images, row.image, is_there))
            found.add(row.id, identity_hash(row.id), row.captions[:captions_per_image])
    return RetrievalSet(
        keys=list(numbers),
        identities=[identity_hash(key) for key in numbers],
        captions=captions,
        image=lambda number: paths[number].read_bytes(),
    )


def named_sets(settings: FineTuneConfig, part: Part) -> dict[str, str]:
    """Return the dev or test sets of a run by name: where each lies."""
    named = settings.dev_sets if part == "dev" else settings.test_sets
    return {name: where if is_remote(where) else str(Path(settings.data) / where) for name, where in named.items()}


def asked_of(settings: FineTuneConfig, name: str, where: str, part: Part) -> Mapping[Language, Asked]:
    """Return what an annotated set of `named_sets` asks; a second time costs nothing (errors as `asked_in`)."""
    return _asked(name, where, part, settings.protocol == "translate-test" and part == "test")


@lru_cache(maxsize=4)
def _asked(name: str, where: str, part: Part, is_translated: bool) -> Mapping[Language, Asked]:
    return asked_in(name, Path(where), part, translated=is_translated)


def retrieval_set(settings: FineTuneConfig, cache: CacheConfig, name: str, where: str, part: Part) -> RetrievalSet:
    """Read a set of `named_sets`, as a run measures it.

    Raises:
        ConfigError, DataError: it cannot be read, or is not what its name says.
    """
    if not is_annotated(name, where):
        return sharded_set(where, cache, settings.captions_per_image)
    asked = asked_of(settings, name, where, part)
    images = [Path(settings.data) / folder for folder in settings.images]
    return annotated_set(asked, images, settings.captions_per_image)
