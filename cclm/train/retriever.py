"""What ranks compute together to find images for texts and texts for images: features, the nearest, scores of pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from cclm.data.batch import Tokens
from cclm.data.collate import int64, pad
from cclm.data.decoding import decode_image
from cclm.data.image import eval_image
from cclm.data.options import ImageTransformConfig
from cclm.data.tokens import TextTokenizer
from cclm.errors import DataError
from cclm.evaluate.pair_scores import PairBatch, match_scores, score_pairs
from cclm.evaluate.rerank import Own, PairNumbers
from cclm.evaluate.retrieval import QUERIES_AT_ONCE, Nearest, Rows, joined, nearest_of_block
from cclm.train.mapped_rows import RowFiles, stays_in_memory
from cclm.train.retrieval_sets import Captions, RetrievalSet
from cclm.train.shared_evaluation import Made, SharedEvaluation
from cclm.views.annotated.source import batches_of

FLOAT_BYTES = 4
FEATURES = "features"
"""In the run folder while a set is measured: features that do not stay in memory."""


Features: TypeAlias = tuple[Tensor, Tensor | None]
"""Of a batch: features (B, E), and states (B, L, D) if they are wanted."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Images, or the texts of a language, through their encoder; on the CPU."""

    feature_NE: Tensor
    state_NLD: Tensor | None
    """Of all tokens; None: they do not stay in memory."""


@dataclass(kw_only=True)
class Retriever:
    """Runs the encoders of a model in training over the images and texts of a set. Its methods are collectives."""

    work: SharedEvaluation
    """In whose turns the ranks do it."""
    tokenizer: TextTokenizer
    transform: ImageTransformConfig
    max_tokens: int
    max_words: int | None
    batch_size: int
    """Images or texts at a time."""
    top_k: int
    """Candidates of each query that are scored; 0: none."""

    def __post_init__(self) -> None:
        """Take the engine."""
        self._engine = self.work.engine

    def images(self, files: RowFiles, found: RetrievalSet) -> Encoded:
        """Encode all images of a set."""
        num_tokens = 1 + (self.work.config.model.vision.grid_side or 0) ** 2
        rows = torch.arange(len(found.keys))
        return self._encoded_rows(files, "images", rows, partial(self._encode_images, found), num_tokens)

    def texts(self, files: RowFiles, texts: Sequence[str]) -> Encoded:
        """Encode texts."""
        return self._encoded_rows(files, "texts", texts, self._encode_texts, self.max_tokens)

    def by_language(
        self,
        found: RetrievalSet,
        captions: Mapping[str, Captions],
        measure: Callable[[str, Captions, Encoded, Encoded], Made],
    ) -> Iterator[Made]:
        """Yield what is measured of each language: its captions, all images of the set, and these texts."""
        files = RowFiles(Path(self.work.config.run_folder) / FEATURES, self._engine.collectives)
        try:
            images = self.images(files, found)
            for language, of_language in captions.items():
                yield measure(language, of_language, images, self.texts(files, of_language.texts))
                self._engine.collectives.barrier()  # nobody reads the language's features any more
        finally:
            files.clear()

    def _encoded_rows(
        self, files: RowFiles, name: str, rows: Any, encode: Callable[[Any, bool], Features], num_tokens: int
    ) -> Encoded:
        """Encode images, or texts, in turns; their states stay if they are needed again and take little. A collective.

        `num_tokens`: of a row, at most; 1 of a tower that does not tell.
        """
        size_bytes = FLOAT_BYTES * len(rows) * num_tokens * self.work.config.model.width
        keeps = self.top_k > 0 and num_tokens > 1 and stays_in_memory(size_bytes)
        states = list[Tensor]()

        def features() -> Iterator[Tensor]:
            for feature_BE, state_BLD in self.work.turns(self._batches(rows), lambda batch: encode(batch, keeps)):
                if state_BLD is not None:
                    states.append(state_BLD)
                yield feature_BE

        feature_NE = files.rows(name, features(), len(rows))
        longest = max((state_BLD.shape[1] for state_BLD in states), default=0)
        padded = [functional.pad(state_BLD, (0, 0, 0, longest - state_BLD.shape[1])) for state_BLD in states]
        return Encoded(feature_NE=feature_NE, state_NLD=torch.cat(padded) if keeps else None)

    def nearest(self, query_QE: Rows, candidate_CE: Rows, identity_Q: Tensor, identity_C: Tensor) -> Own:
        """Let the ranks take blocks of queries in turns, and keep what they find."""
        device, kept = self._engine.device, max(1, self.top_k)

        def found(number_B: Tensor) -> Nearest:
            rows_BE, of_B = query_QE[number_B].to(device), identity_Q[number_B]
            return nearest_of_block(rows_BE, candidate_CE, of_B, identity_C, kept).to(torch.device("cpu"))

        blocks = torch.split(torch.arange(len(query_QE)), QUERIES_AT_ONCE)
        mine = self.work.own_turns(blocks, lambda number_B: (number_B, found(number_B)))
        mine = mine or [(blocks[0][:0], found(blocks[0][:0]))]  # of a rank without a block
        return Own(number_Q=torch.cat([number_B for number_B, _ in mine]), found=joined([one for _, one in mine]))

    def match(
        self,
        found: RetrievalSet,
        texts: Sequence[str],
        image_C: Tensor,
        images: Encoded,
        encoded: Encoded,
        pairs: PairNumbers,
        *,
        log_odds: bool = False,
    ) -> Tensor:
        """Return what the matching head says of pairs of texts and images (`match_scores`): the ranks take turns.

        Args:
            image_C: the images that the pairs number, as the set numbers them.
            images, encoded: all images of the set, and the texts.
        """
        text_TLD = encoded.state_NLD

        def states(image_B: Tensor) -> Tensor:
            number_B = image_C[image_B]
            if images.state_NLD is not None:
                return images.state_NLD[number_B]

            def encode(some_B: Tensor) -> Tensor:
                _, state_BND = self._encode_images(found, some_B, keeps=True)
                assert state_BND is not None, "it was asked for"
                return state_BND

            return torch.cat(self.work.in_turns(self._batches(number_B), encode))

        def score(image_IND: Tensor, batch: PairBatch) -> Tensor:
            tokens = self._tokens([texts[number] for number in batch.text_U.tolist()])

            def probe(module: nn.Module) -> dict[str, Tensor]:
                model: Any = module.model
                if text_TLD is None:
                    state_ULD = model.encode_texts(tokens.ids_BL, tokens.mask_BL)
                else:
                    state_ULD = text_TLD[batch.text_U, : tokens.ids_BL.shape[1]].to(self._engine.device)
                return {"score": match_scores(model, image_IND, batch, state_ULD, tokens.mask_BL, log_odds=log_odds)}

            return self._engine.evaluate(probe)["score"].cpu()

        return score_pairs(
            pairs,
            int64([len(self.encoded(text)) for text in texts]),
            states,
            score,
            batch_size=self.batch_size,
            device=self._engine.device,
            each=self.work.in_turns,
        )

    def _batches(self, given: Any) -> list[Any]:
        return list(batches_of(given, self.batch_size))

    def _encode_images(self, found: RetrievalSet, number_B: Tensor, keeps: bool) -> Features:
        images = (decode_image(found.image(number), where=found.keys[number]) for number in number_B.tolist())
        pixels = [torch.from_numpy(eval_image(image, self.transform)) for image in images]
        images_BCHW = torch.stack(pixels).to(self._engine.device)

        def run(model: Any) -> tuple[Tensor, Tensor]:
            state_BND = model.encode_images(images_BCHW)
            return model.project_images(state_BND), state_BND

        return self._encoded(run, keeps)

    def _encode_texts(self, texts: Sequence[str], keeps: bool) -> Features:
        tokens = self._tokens(texts)

        def run(model: Any) -> tuple[Tensor, Tensor]:
            state_BLD = model.encode_texts(tokens.ids_BL, tokens.mask_BL)
            return model.project_texts(state_BLD, tokens.mask_BL), state_BLD

        return self._encoded(run, keeps)

    def _encoded(self, run: Callable[[Any], tuple[Tensor, Tensor]], keeps: bool) -> Features:
        def probe(module: nn.Module) -> dict[str, Tensor]:
            feature_BE, state_BLD = run(module.model)
            return {"features": feature_BE.float(), **({"states": state_BLD} if keeps else {})}

        made = self._engine.evaluate(probe)
        return made["features"].cpu(), made["states"].cpu() if keeps else None

    def _tokens(self, texts: Sequence[str]) -> Tokens:
        return pad([self.encoded(text) for text in texts], self.tokenizer.pad_id).to(self._engine.device)

    def encoded(self, text: str) -> list[int]:
        """Return a caption's ids; of one without a token (WIT has ".") those of an empty text: it counts."""
        try:
            return self.tokenizer.encode([text], self.max_tokens, self.max_words)[0]
        except DataError as error:
            if error.reason != "text_empty":
                raise
            return [self.tokenizer.bos_id, self.tokenizer.eos_id]
