"""A plain `webdataset` pipeline over a shard set, for people who have a training loop of their own.

It knows nothing of steps, lanes or resuming (`cclm.data.loader` does); it shows that a shard is an ordinary tar, and
gives records one by one with the package's own shuffling and splitting among nodes and workers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError, MissingDependencyError
from cclm.shardfile.codec import decode_block, decode_image_text, pairs_of
from cclm.shardfile.manifest import Manifest
from cclm.shardfile.schema import BLOCK_EXTENSION, IMAGE_FORMATS, JSON_EXTENSION
from cclm.types import ImageTextRecord, TextPair, View

Handler = Callable[[Exception], bool]


def plain_pipeline(folder: Path | str, shuffle: int = 0, seed: int = 0, handler: Handler | None = None) -> Any:
    """A `webdataset` pipeline that yields `ImageTextRecord`s or `TextPair`s; compose further with its methods.

    Args:
        shuffle: how many records are shuffled together, and shards too; 0 for the stored order.
        handler: called with the error of a broken sample; returns whether to go on without it
            (`webdataset.warn_and_continue` and the like). None: the error ends the iteration.

    Raises:
        ConfigError: for an empty set.
        DataError: for a folder that is no shard set.
        MissingDependencyError: without the `webdataset` package.
    """
    try:
        import webdataset
    except ImportError as error:
        raise MissingDependencyError(
            expected="the package webdataset", got="none", do="pip install webdataset"
        ) from error
    manifest = Manifest.load(Path(folder))
    urls = [str(Path(folder) / shard.name) for shard in manifest.shards]
    if not urls:
        raise ConfigError(expected="a set with shards", got="an empty one", do="Build it again.", where=str(folder))
    policy = webdataset.reraise_exception if handler is None else handler
    stages: list[Any] = [webdataset.SimpleShardList(urls, seed=seed if shuffle else None)]
    stages += [webdataset.split_by_node, webdataset.split_by_worker, webdataset.tarfile_to_samples(handler=policy)]
    if manifest.view is View.IMAGE_TEXT:
        stages.append(webdataset.map(image_text_record, handler=policy))
    else:
        stages += [webdataset.map(text_pairs, handler=policy), chain.from_iterable]
    if shuffle:
        stages.append(webdataset.shuffle(shuffle, initial=shuffle, seed=seed))
    return webdataset.DataPipeline(*stages)


def image_text_record(sample: dict[str, Any]) -> ImageTextRecord:
    """One undecoded `webdataset` sample as a record (errors: `decode_image_text`)."""
    image_format = next((name for name in IMAGE_FORMATS if name in sample), "")
    where = f"{sample.get('__url__', '')}, key {sample['__key__']}"
    document = sample.get(JSON_EXTENSION, b"")
    return decode_image_text(sample["__key__"], image_format, sample.get(image_format, b""), document, where)


def text_pairs(sample: dict[str, Any]) -> list[TextPair]:
    """One undecoded `webdataset` sample, a block, as its pairs (errors: `decode_block`)."""
    where = f"{sample.get('__url__', '')}, key {sample['__key__']}"
    return pairs_of(decode_block(sample.get(BLOCK_EXTENSION, b""), where))
