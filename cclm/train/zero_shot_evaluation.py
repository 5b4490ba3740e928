"""Zero-shot retrieval while a run pre-trains, with the weights of its engine: what `cclm evaluate` says of an export.

after every_steps    sets, shared out to the ranks ─▶ log.jsonl, evaluations.jsonl ─▶ the best are pinned
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from cclm.config import ALL, MEAN_RECALL, EvaluationConfig, RunConfig
from cclm.data.batch import Batch
from cclm.data.collate import int64
from cclm.data.loader import StepDataset
from cclm.data.tokens import TextTokenizer
from cclm.distributed.agreement import made_by_first
from cclm.engine.protocol import Engine
from cclm.errors import ConfigError
from cclm.evaluate.rerank import Own, gathered, rerank_owned
from cclm.evaluate.retrieval import recall
from cclm.hub.open import longest_text, transform_of
from cclm.train.retrieval_sets import Captions, RetrievalSet, sharded_set
from cclm.train.retriever import Encoded, Retriever
from cclm.train.shared_evaluation import Evaluation, SharedEvaluation

Numbers = dict[str, float]
"""In percent, by what they count."""


@dataclass(kw_only=True)
class ZeroShotEvaluation(SharedEvaluation):
    """Measures the sets of a configuration, language by language."""

    settings: EvaluationConfig
    tokenizer: TextTokenizer

    def __post_init__(self) -> None:
        """Read all captions, so that what is wrong with a set is said now; rank 0 does, and tells the others."""
        once, cache = partial(made_by_first, self.engine.collectives), self.config.data.cache
        self._sets = {name: sharded_set(where, cache, 1, once) for name, where in sorted(self.settings.sets.items())}
        self._languages = {name: self._languages_of(name, found) for name, found in self._sets.items()}
        hashes = {name: next(iter(found.captions.values())).data_sha256 for name, found in self._sets.items()}
        settings = (self.settings.measure, self._languages, hashes, self.settings.rerank_top_k)
        self._kind = sha256(json.dumps(settings).encode()).hexdigest()[:16]
        self._retriever = Retriever(
            work=self,
            tokenizer=self.tokenizer,
            transform=transform_of(self.config),
            max_tokens=longest_text(self.config),
            max_words=None,
            batch_size=self.settings.batch_size,
            top_k=self.settings.rerank_top_k,
        )
        super().__post_init__()

    def _languages_of(self, name: str, found: RetrievalSet) -> Sequence[str]:
        of_set, group, *_ = [*self.settings.measure.split("/"), ""]
        wanted = self.settings.languages or sorted(found.captions)
        is_language = of_set == name and group not in (ALL, "", *self.settings.groups)
        if missing := [one for one in [*wanted, *([group] if is_language else [])] if one not in found.captions]:
            raise ConfigError(
                where=f"evaluation.sets.{name}", expected=f"captions in {', '.join(missing)}",
                got=f"those in {', '.join(sorted(found.captions))}",
                do="Change evaluation.groups or evaluation.measure, or name another set.",
            )  # fmt: skip
        return wanted

    def is_due(self, step: int) -> bool:
        """Return whether it is measured after `step` updates."""
        return step > 0 and (step % self.settings.every_steps == 0 or step == self.config.steps)

    def after(self, step: int) -> bool:
        """Measure, if it is due; return whether a checkpoint of these weights may be the best."""
        if not self.is_due(step):
            return False
        self._step = step
        numbers = {
            f"{name}/{key}": value
            for name, found in self._sets.items()
            for key, value in self._measure(name, found).items()
        }
        means = [numbers[f"{name}/{ALL}/{MEAN_RECALL}"] for name in self._sets]
        value = numbers[self.settings.measure] if self.settings.measure else sum(means) / len(means)
        self.record(step - 1, {"evaluation": value, **{f"evaluation/{name}": one for name, one in numbers.items()}})
        self.note(step, {"value": value, "kind": self._kind, "numbers": numbers})
        return self.config.checkpoint.keep_best > 0

    def is_comparable(self, line: Mapping[str, Any]) -> bool:
        """Return whether a line is about the same measure, sets and languages."""
        return line.get("kind") == self._kind

    def _measure(self, name: str, found: RetrievalSet) -> Numbers:
        captions = {language: found.captions[language] for language in self._languages[name]}

        def measure(language: str, texts: Captions, *encoded: Encoded) -> tuple[str, Numbers]:
            return language, self._language(found, texts, *encoded)

        by_language = dict(self._retriever.by_language(found, captions, measure))
        groups = {ALL: by_language, **self.settings.groups, **{language: [language] for language in by_language}}
        return {
            f"{group}/{number}": sum(by_language[language][number] for language in members) / len(members)
            for group, members in groups.items()
            for number in self.settings.numbers
        }

    def _language(self, found: RetrievalSet, captions: Captions, images: Encoded, texts: Encoded) -> Numbers:
        """Let each text find its image among all, and each image that has a text here its text."""
        identity_T, identity_I = int64(captions.identities), int64(found.identities)
        forward = self._retriever.nearest(texts.feature_NE, images.feature_NE, identity_T, identity_I)
        backward = self._retriever.nearest(images.feature_NE, texts.feature_NE, identity_I, identity_T)
        asked_I = torch.isin(identity_I, identity_T)
        columns = {"": {"t2i": forward.found.rank_Q, "i2t": backward.found.rank_Q}}
        if self.settings.rerank_top_k:
            every, exchange = torch.arange(len(identity_I)), self.engine.collectives.exchange
            match = partial(self._retriever.match, found, captions.texts, every, images, texts, log_odds=True)
            again = rerank_owned(forward, backward, len(identity_I), match, exchange)
            columns["reranked_"] = {"t2i": again.text_rank_Q, "i2t": again.image_rank_Q}
        return {
            f"{order}{name}": value
            for order, own in columns.items()
            for name, value in self._recalls(own, {"t2i": forward, "i2t": backward}, asked_I).items()
        }

    def _recalls(self, own: Mapping[str, Tensor], queries: Mapping[str, Own], asked_I: Tensor) -> Numbers:
        exchange = self.engine.collectives.exchange
        rank = {way: gathered(queries[way].number_Q, {"": rank_Q}, exchange)[""] for way, rank_Q in own.items()}
        rank["i2t"] = rank["i2t"][asked_I]
        numbers = {f"{way}_{name}": value for way, rank_Q in rank.items() for name, value in recall(rank_Q).items()}
        return {MEAN_RECALL: sum(numbers.values()) / len(numbers), **numbers}


def zero_shot_evaluation(config: RunConfig, engine: Engine[Batch], dataset: StepDataset, start_step: int) -> Evaluation:
    """Return what is measured beside the losses of a run that pre-trains: what its configuration says, or nothing."""
    if config.evaluation is None:
        return Evaluation()
    tokenizer = next(iter(dataset.sources.values())).tokenizer
    return ZeroShotEvaluation(
        config=config, engine=engine, start_step=start_step, settings=config.evaluation, tokenizer=tokenizer
    )
