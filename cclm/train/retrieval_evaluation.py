"""Evaluation of retrieval: each text finds its image, each image one of its texts, language by language.

    images, texts of a language ─ batches, in turns over the ranks ─▶ features ─ nearest, in blocks ─▶ ranks, candidates
                       candidates of both directions ─ each pair once, in blocks of images ─▶ logits ─▶ ranks once more

What stays in memory are features and candidates, and the states of images and texts as long as these take little
(`cclm.train.mapped_rows`): else they are computed again, block by block. Never a matrix of all similarities.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cclm.annotations.retrieval import Part
from cclm.annotations.tasks import TASKS as BENCHMARKS
from cclm.data.collate import int64
from cclm.data.source import SampleSource
from cclm.errors import ConfigError
from cclm.evaluate.rerank import gathered, rerank_owned
from cclm.evaluate.results import Result
from cclm.shardfile.options import is_remote
from cclm.train.evaluation import Known, Measured, TaskEvaluation
from cclm.train.mapped_rows import ChosenRows
from cclm.train.retrieval_sets import (
    Captions,
    RetrievalSet,
    is_annotated,
    named_sets,
    open_shards,
    retrieval_set,
)
from cclm.train.retriever import Encoded, Retriever
from cclm.views.annotated.options import AnnotatedConfig, language_of
from cclm.views.annotated.source import Line

OPPOSITE = {"t2i": "i2t", "i2t": "t2i"}


@dataclass(kw_only=True)
class RetrievalEvaluation(TaskEvaluation):
    """Of the image-text view: its dev and test sets are shard sets, or folders of annotation files."""

    source: SampleSource[Any, Any]
    _annotated: dict[tuple[str, str, Part], RetrievalSet] = field(default_factory=dict)
    """Benchmarks by name, place and part: their files are read once."""

    def __post_init__(self) -> None:
        """As for every task."""
        of_view = self.source.config
        self._retriever = Retriever(
            work=self,
            tokenizer=self.source.tokenizer,
            transform=of_view.transform,
            max_tokens=of_view.max_tokens,
            max_words=of_view.max_words,
            batch_size=self.finetune.evaluation_batch,
            top_k=self.finetune.rerank_top_k,
        )
        super().__post_init__()

    def sets(self, part: Part) -> Mapping[str, str]:
        """Return shard sets and folders of benchmarks."""
        return named_sets(self.finetune, part)

    def task_of(self, name: str) -> str:
        """Return the benchmark that a test set is called after; of another name it is what the settings call it."""
        return name if name in BENCHMARKS else super().task_of(name)

    def languages_of(self, part: Part) -> Collection[str]:
        """Of test sets those that the settings name; of dev sets those that are trained: others must not choose."""
        config = self.source.config
        if part == "test":
            return self.finetune.test_languages or ()
        return (
            sorted(map(language_of, config.sources)) if isinstance(config, AnnotatedConfig) else config.languages or ()
        )

    def check(self, name: str, where: str, part: Part) -> None:
        """Open all shards of a set that lies here, or read a benchmark's annotation files and look for their images.

        Raises:
            ConfigError, DataError: one of them is not as it should be, or the model has no matching head.
        """
        if self.finetune.rerank_top_k and not self.config.model.pretraining_heads:
            raise ConfigError(
                where="finetune.rerank_top_k", expected="0 of a model without matching head",
                got=str(self.finetune.rerank_top_k), do="Set it to 0, or model.pretraining_heads to true.",
            )  # fmt: skip
        if is_annotated(name, where):
            found: Collection[str] = self._open(name, where, part).captions
        else:
            with closing(open_shards(where, self.config.data.cache)) as shards:
                found = shards.languages
                is_looked_at = self.will_measure(part) and not is_remote(where)
                for shard in range(len(shards.samples_per_shard)) if is_looked_at else ():
                    shards.open_shard(shard)
        wanted = self.finetune.test_languages
        if part == "test" and wanted and not set(wanted) & set(found):
            raise ConfigError(
                where="finetune.test_languages", expected=f"languages of {where}: {', '.join(sorted(found))}",
                got=", ".join(wanted), do="Name one of these, or measure another set.",
            )  # fmt: skip

    def is_whole(self, last: Result) -> bool:
        """Return whether it is the last one that is written of a language."""
        return last.metric == self.measured.metrics[-1] and last.reranked == self.finetune.rerank_top_k

    def predict(
        self, name: str, where: str, part: Part, languages: Collection[str] = (), known: Collection[Known] = ()
    ) -> Iterator[Measured]:
        """Rank the images of a language, those with a text in it, for each of its texts, and these for each image."""
        began, found = time.monotonic(), self._open(name, where, part)
        if part == "dev" and is_annotated(name, where) and not set(languages) & set(found.captions):
            languages = ()  # published in English only: few-shot runs in other languages choose on it, too (IGLUE)
        captions = {
            language: texts
            for language, texts in sorted(found.captions.items())
            if (not languages or language in languages)
            and (self.predictions(name, language), texts.data_sha256) not in known
        }

        def measure(language: str, texts: Captions, images: Encoded, encoded: Encoded) -> Measured:
            return self._language(found, language, texts, images, encoded, began)

        for measured in self._retriever.by_language(found, captions, measure) if captions else ():
            yield measured
            began = time.monotonic()

    def _open(self, name: str, where: str, part: Part) -> RetrievalSet:
        key = (name, where, part)
        found = self._annotated.get(key) or retrieval_set(self.finetune, self.config.data.cache, name, where, part)
        if is_annotated(name, where):
            self._annotated[key] = found
        return found

    def _language(
        self, found: RetrievalSet, language: str, texts: Captions, images: Encoded, encoded: Encoded, began: float
    ) -> Measured:
        identity_T, identity_I = int64(texts.identities), int64(found.identities)
        asked_C = torch.isin(identity_I, identity_T).nonzero()[:, 0]  # an image without a text is not there
        identity_C, image_CE = identity_I[asked_C], ChosenRows(images.feature_NE, asked_C)
        nearest = self._retriever.nearest
        forward = nearest(encoded.feature_NE, image_CE, identity_T, identity_C)
        backward = nearest(image_CE, encoded.feature_NE, identity_C, identity_T)
        own = {"t2i": forward, "i2t": backward}
        columns = {way: {"rank": of.found.rank_Q, "first": of.found.candidate_QK[:, 0]} for way, of in own.items()}
        cost: dict[str, float] = {}
        if self.finetune.rerank_top_k:
            begin = time.monotonic()
            match = partial(self._retriever.match, found, texts.texts, asked_C, images, encoded)
            exchange = self.engine.collectives.exchange
            again = rerank_owned(forward, backward, len(asked_C), match, exchange)
            columns["t2i"]["reranked"], columns["i2t"]["reranked"] = again.text_rank_Q, again.image_rank_Q
            seconds, total = time.monotonic() - begin, time.monotonic() - began
            cost = {"pairs": again.num_pairs, "seconds": seconds, "share": seconds / total}
        ranks = {way: gathered(own[way].number_Q, of, self.engine.collectives.exchange) for way, of in columns.items()}
        ids = {"t2i": texts.ids, "i2t": [found.keys[image] for image in asked_C.tolist()]}
        first = {way: of.pop("first") for way, of in ranks.items()}
        names = {way: [ids[other][number] for number in first[way].tolist()] for way, other in OPPOSITE.items()}
        return Measured(
            language=language,
            lines=[line for way, of_way in ranks.items() for line in _lines(way, ids[way], names[way], of_way)],
            denominators=None,
            data_sha256=texts.data_sha256,
            hashes=texts.hashes,
            split=texts.split,
            data_file=texts.data_file,
            reranked=self.finetune.rerank_top_k,
            cost=cost,
        )


def _lines(direction: str, ids: Sequence[str], first: Sequence[str], ranks: Mapping[str, Tensor]) -> list[Line]:
    """Return a prediction for each query: its rank by features, after re-ranking where that was done, and what it found
    first, by features."""
    columns = [values.tolist() for values in ranks.values()]
    return [
        {"id": one, "direction": direction, **dict(zip(ranks, row, strict=True)), "predicted": predicted}
        for one, predicted, *row in zip(ids, first, *columns, strict=True)
    ]
