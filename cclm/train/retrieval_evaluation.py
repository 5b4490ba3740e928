"""Evaluation of retrieval: each text finds its image, each image one of its texts, language by language.

    images, texts of a language ─ batches, in turns over the ranks ─▶ features ─ nearest, in blocks ─▶ ranks, candidates
                       candidates of both directions ─ each pair once, in blocks of images ─▶ logits ─▶ ranks once more

What stays in memory are features and candidates, never a matrix of all similarities nor the states of all images.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cclm.annotations.retrieval import Part
from cclm.annotations.tasks import TASKS as BENCHMARKS
from cclm.data.batch import Tokens
from cclm.data.collate import int64, pad
from cclm.data.decoding import decode_image
from cclm.data.image import eval_image
from cclm.data.source import SampleSource
from cclm.errors import ConfigError, DataError
from cclm.evaluate.owned import Own, gathered, rerank_owned
from cclm.evaluate.pair_scores import PairBatch, match_scores, score_pairs
from cclm.evaluate.rerank import SCORE_TOLERANCE, PairNumbers
from cclm.evaluate.results import Result
from cclm.evaluate.retrieval import QUERIES_AT_ONCE, Nearest, Rows, joined, nearest_of_block
from cclm.train.evaluation import Known, Measured, TaskEvaluation
from cclm.train.mapped_rows import ChosenRows, RowFiles
from cclm.train.retrieval_sets import (
    Captions,
    RetrievalSet,
    is_annotated,
    named_sets,
    open_shards,
    retrieval_set,
)
from cclm.views.annotated.options import AnnotatedConfig, language_of
from cclm.views.annotated.source import batches_of
from cclm.views.annotated.view import Line

FEATURES = "features"
"""In the run folder while a set is measured: features that do not stay in memory."""
OPPOSITE = {"t2i": "i2t", "i2t": "t2i"}


@dataclass(kw_only=True)
class RetrievalEvaluation(TaskEvaluation):
    """Of the image-text view: its dev and test sets are shard sets, or folders of annotation files."""

    source: SampleSource[Any, Any]
    _annotated: dict[tuple[str, str, Part], RetrievalSet] = field(default_factory=dict)
    """Benchmarks by name, place and part: their files are read once."""

    def sets(self, part: Part) -> Mapping[str, str]:
        """Return shard sets and folders of benchmarks."""
        return named_sets(self.finetune, part)

    def task_of(self, name: str) -> str:
        """Return the benchmark that a test set is called after; of another name it is what the settings call it."""
        return name if name in BENCHMARKS else super().task_of(name)

    @property
    def dev_languages(self) -> Collection[str]:
        """Those that are trained: other languages must not choose the epoch."""
        config = self.source.config
        return (
            sorted(map(language_of, config.sources)) if isinstance(config, AnnotatedConfig) else config.languages or ()
        )

    @property
    def test_languages(self) -> Collection[str]:
        """Those that the settings name."""
        return self.finetune.test_languages or ()

    def check(self, name: str, where: str, part: Part) -> None:
        """Open a shard set, or read a benchmark's annotation files and look for all images that they name.

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
        if part == "test" and self.test_languages and not set(self.test_languages) & set(found):
            raise ConfigError(
                where="finetune.test_languages", expected=f"languages of {where}: {', '.join(sorted(found))}",
                got=", ".join(self.test_languages), do="Name one of these, or measure another set.",
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
        if not captions:
            return
        files = RowFiles(self._folder / FEATURES, self.engine.collectives)
        batches = self._batches(torch.arange(len(found.keys)))
        try:
            features = self.turns(batches, partial(self._image_features, found))
            images_IE = files.rows("images", features, len(found.keys))
            for language, texts in captions.items():
                features = self.turns(self._batches(texts.texts), self._text_features)
                text_TE = files.rows("texts", features, len(texts.texts))
                yield self._language(found, language, texts, images_IE, text_TE, began)
                began = time.monotonic()
                self.engine.collectives.barrier()  # nobody reads the language's features any more
        finally:
            files.clear()

    def _open(self, name: str, where: str, part: Part) -> RetrievalSet:
        key = (name, where, part)
        found = self._annotated.get(key) or retrieval_set(self.finetune, self.config.data.cache, name, where, part)
        if is_annotated(name, where):
            self._annotated[key] = found
        return found

    def _language(
        self, found: RetrievalSet, language: str, texts: Captions, images_IE: Tensor, text_TE: Tensor, began: float
    ) -> Measured:
        identity_T, identity_I = int64(texts.identities), int64(found.identities)
        asked_C = torch.isin(identity_I, identity_T).nonzero()[:, 0]  # an image without a text is not there
        identity_C, image_CE = identity_I[asked_C], ChosenRows(images_IE, asked_C)
        forward = self._nearest(text_TE, image_CE, identity_T, identity_C)
        backward = self._nearest(image_CE, text_TE, identity_C, identity_T)
        own = {"t2i": forward, "i2t": backward}
        columns = {way: {"rank": of.found.rank_Q, "first": of.found.candidate_QK[:, 0]} for way, of in own.items()}
        cost: dict[str, float] = {}
        if self.finetune.rerank_top_k:
            begin = time.monotonic()
            match, exchange = partial(self._match, found, texts, asked_C), self.engine.collectives.exchange
            again = rerank_owned(forward, backward, len(asked_C), match, SCORE_TOLERANCE, exchange)
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

    def _nearest(self, query_QE: Rows, candidate_CE: Rows, identity_Q: Tensor, identity_C: Tensor) -> Own:
        """Let the ranks take blocks of queries in turns, and keep what they find."""
        device, kept = self.engine.device, max(1, self.finetune.rerank_top_k)

        def found(number_B: Tensor) -> Nearest:
            rows_BE, of_B = query_QE[number_B].to(device), identity_Q[number_B]
            return nearest_of_block(rows_BE, candidate_CE, of_B, identity_C, kept).to(torch.device("cpu"))

        blocks = torch.split(torch.arange(len(query_QE)), QUERIES_AT_ONCE)
        mine = self.own_turns(blocks, lambda number_B: (number_B, found(number_B)))
        mine = mine or [(blocks[0][:0], found(blocks[0][:0]))]  # of a rank without a block
        return Own(number_Q=torch.cat([number_B for number_B, _ in mine]), found=joined([one for _, one in mine]))

    def _match(self, found: RetrievalSet, texts: Captions, asked_C: Tensor, pairs: PairNumbers) -> Tensor:
        """Return the matching head's logits of pairs, which ranks compute in turns."""

        def states(image_B: Tensor) -> Tensor:
            return self._encoded_images(found, asked_C[image_B], "encode_images")

        def score(image_IND: Tensor, batch: PairBatch) -> Tensor:
            tokens = self._tokens([texts.texts[number] for number in batch.text_U.tolist()])

            def probe(module: nn.Module) -> dict[str, Tensor]:
                model: Any = module.model
                return {"score": match_scores(model, image_IND, batch, tokens.ids_BL, tokens.mask_BL)}

            return self.engine.evaluate(probe)["score"].cpu()

        return score_pairs(
            pairs,
            int64([len(self._encoded(text)) for text in texts.texts]),
            states,
            score,
            batch_size=self.finetune.evaluation_batch,
            device=self.engine.device,
            each=self.in_turns,
        )

    def _batches(self, given: Any) -> list[Any]:
        return list(batches_of(given, self.finetune.evaluation_batch))

    def _image_features(self, found: RetrievalSet, number_B: Tensor) -> Tensor:
        return self._encoded_images(found, number_B, "get_image_features").float()

    def _encoded_images(self, found: RetrievalSet, number_B: Tensor, method: str) -> Tensor:
        """Return what a method of the model makes of some images."""
        transform = self.source.config.transform
        images = (decode_image(found.image(number), where=found.keys[number]) for number in number_B.tolist())
        pixels = [torch.from_numpy(eval_image(image, transform)) for image in images]
        images_BCHW = torch.stack(pixels).to(self.engine.device)

        def probe(module: nn.Module) -> dict[str, Tensor]:
            return {"made": getattr(module.model, method)(images_BCHW)}

        return self.engine.evaluate(probe)["made"].cpu()

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        tokens = self._tokens(texts)

        def probe(module: nn.Module) -> dict[str, Tensor]:
            found = module.model.get_text_features(tokens.ids_BL, tokens.mask_BL)  # type: ignore[union-attr,operator]
            return {"features": found}

        return self.engine.evaluate(probe)["features"].float().cpu()

    def _tokens(self, texts: Sequence[str]) -> Tokens:
        return pad([self._encoded(text) for text in texts], self.source.tokenizer.pad_id).to(self.engine.device)

    def _encoded(self, text: str) -> list[int]:
        """Return a caption's ids; of one without a token (WIT has ".") those of an empty text: it counts."""
        tokenizer, config = self.source.tokenizer, self.source.config
        try:
            return tokenizer.encode([text], config.max_tokens, config.max_words)[0]
        except DataError as error:
            if error.reason != "text_empty":
                raise
            return [tokenizer.bos_id, tokenizer.eos_id]


def _lines(direction: str, ids: Sequence[str], first: Sequence[str], ranks: Mapping[str, Tensor]) -> list[Line]:
    """Return a prediction for each query: its rank by features, after re-ranking where that was done, and what it found
    first, by features."""
    columns = [values.tolist() for values in ranks.values()]
    return [
        {"id": one, "direction": direction, **dict(zip(ranks, row, strict=True)), "predicted": predicted}
        for one, predicted, *row in zip(ids, first, *columns, strict=True)
    ]
