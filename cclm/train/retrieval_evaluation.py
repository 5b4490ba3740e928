"""Evaluation of retrieval: each text finds its image, each image one of its texts, language by language.

    images, texts of a language ─ batches, in turns over the ranks ─▶ features ─ nearest, in blocks ─▶ ranks, candidates
                       candidates of both directions ─ each pair once, in blocks of images ─▶ logits ─▶ ranks once more

What stays in memory are features and candidates, and the states of images and texts as long as these take little
(`cclm.train.mapped_rows`): else they are computed again, block by block. Never a matrix of all similarities.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

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
from cclm.train.mapped_rows import ChosenRows, RowFiles, stays_in_memory
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
FLOAT_BYTES = 4
OPPOSITE = {"t2i": "i2t", "i2t": "t2i"}


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """Images, or the texts of a language, through their encoder; on the CPU."""

    feature_NE: Tensor
    state_NLD: Tensor | None
    """Of all tokens; None: they do not stay in memory."""


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
        num_tokens = 1 + (self.config.model.vision.grid_side or 0) ** 2
        try:
            encode = partial(self._encode_images, found)
            images = self._encoded_rows(files, "images", torch.arange(len(found.keys)), encode, num_tokens)
            for language, of_language in captions.items():
                texts = self._encoded_rows(
                    files, "texts", of_language.texts, self._encode_texts, self.source.config.max_tokens
                )
                yield self._language(found, language, of_language, images, texts, began)
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

    def _encoded_rows(
        self, files: RowFiles, name: str, rows: Any, encode: Callable[[Any], tuple[Tensor, Tensor]], num_tokens: int
    ) -> _Encoded:
        """Encode images, or texts, in turns; their states stay if they are needed again and take little. A collective.

        `num_tokens`: of a row, at most; 1 of a tower that does not tell.
        """
        size_bytes = FLOAT_BYTES * len(rows) * num_tokens * self.config.model.width
        keeps = self.finetune.rerank_top_k > 0 and num_tokens > 1 and stays_in_memory(size_bytes)
        states = list[Tensor]()

        def encoded(batch: Any) -> tuple[Tensor, Tensor]:
            feature_BE, state_BLD = encode(batch)
            return feature_BE, state_BLD if keeps else state_BLD[:0]

        def features() -> Iterator[Tensor]:
            for feature_BE, state_BLD in self.turns(self._batches(rows), encoded):
                states.append(state_BLD)
                yield feature_BE

        feature_NE = files.rows(name, features(), len(rows))
        longest = max(state_BLD.shape[1] for state_BLD in states)
        padded = (functional.pad(state_BLD, (0, 0, 0, longest - state_BLD.shape[1])) for state_BLD in states)
        return _Encoded(feature_NE=feature_NE, state_NLD=torch.cat(list(padded)) if keeps else None)

    def _language(
        self, found: RetrievalSet, language: str, texts: Captions, images: _Encoded, encoded: _Encoded, began: float
    ) -> Measured:
        identity_T, identity_I = int64(texts.identities), int64(found.identities)
        asked_C = torch.isin(identity_I, identity_T).nonzero()[:, 0]  # an image without a text is not there
        identity_C, image_CE = identity_I[asked_C], ChosenRows(images.feature_NE, asked_C)
        forward = self._nearest(encoded.feature_NE, image_CE, identity_T, identity_C)
        backward = self._nearest(image_CE, encoded.feature_NE, identity_C, identity_T)
        own = {"t2i": forward, "i2t": backward}
        columns = {way: {"rank": of.found.rank_Q, "first": of.found.candidate_QK[:, 0]} for way, of in own.items()}
        cost: dict[str, float] = {}
        if self.finetune.rerank_top_k:
            begin = time.monotonic()
            match = partial(self._match, found, texts, asked_C, images.state_NLD, encoded.state_NLD)
            exchange = self.engine.collectives.exchange
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

    def _match(
        self,
        found: RetrievalSet,
        texts: Captions,
        asked_C: Tensor,
        image_IND: Tensor | None,
        text_TLD: Tensor | None,
        pairs: PairNumbers,
    ) -> Tensor:
        """Return the matching head's logits of pairs, which ranks compute in turns.

        `image_IND`, `text_TLD`: states of all images and of all texts, where they are in memory.
        """

        def states(image_B: Tensor) -> Tensor:
            number_B = asked_C[image_B]
            if image_IND is not None:
                return image_IND[number_B]
            return torch.cat(self.in_turns(self._batches(number_B), lambda some: self._encode_images(found, some)[1]))

        def score(image_IND: Tensor, batch: PairBatch) -> Tensor:
            tokens = self._tokens([texts.texts[number] for number in batch.text_U.tolist()])

            def probe(module: nn.Module) -> dict[str, Tensor]:
                model: Any = module.model
                if text_TLD is None:
                    state_ULD = model.encode_texts(tokens.ids_BL, tokens.mask_BL)
                else:
                    state_ULD = text_TLD[batch.text_U, : tokens.ids_BL.shape[1]].to(self.engine.device)
                return {"score": match_scores(model, image_IND, batch, state_ULD, tokens.mask_BL)}

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

    def _encode_images(self, found: RetrievalSet, number_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and states of some images, on the CPU."""
        transform = self.source.config.transform
        images = (decode_image(found.image(number), where=found.keys[number]) for number in number_B.tolist())
        pixels = [torch.from_numpy(eval_image(image, transform)) for image in images]
        images_BCHW = torch.stack(pixels).to(self.engine.device)

        def probe(module: nn.Module) -> dict[str, Tensor]:
            model: Any = module.model
            state_BND = model.encode_images(images_BCHW)
            return {"features": model.project_images(state_BND).float(), "states": state_BND}

        made = self.engine.evaluate(probe)
        return made["features"].cpu(), made["states"].cpu()

    def _encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return features and states of some texts, on the CPU."""
        tokens = self._tokens(texts)

        def probe(module: nn.Module) -> dict[str, Tensor]:
            model: Any = module.model
            state_BLD = model.encode_texts(tokens.ids_BL, tokens.mask_BL)
            return {"features": model.project_texts(state_BLD, tokens.mask_BL).float(), "states": state_BLD}

        made = self.engine.evaluate(probe)
        return made["features"].cpu(), made["states"].cpu()

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
