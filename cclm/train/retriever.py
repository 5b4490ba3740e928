"""What ranks compute together to find images for texts and texts for images: features, the nearest, scores of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cclm.data.batch import Tokens
from cclm.data.collate import int64, pad
from cclm.data.decoding import decode_image
from cclm.data.image import eval_image
from cclm.data.options import ImageTransformConfig
from cclm.data.tokens import TextTokenizer
from cclm.errors import DataError
from cclm.evaluate.owned import Own
from cclm.evaluate.pair_scores import PairBatch, match_scores, score_pairs
from cclm.evaluate.rerank import PairNumbers
from cclm.evaluate.retrieval import QUERIES_AT_ONCE, Nearest, Rows, joined, nearest_of_block
from cclm.train.retrieval_sets import RetrievalSet
from cclm.train.shared_evaluation import SharedEvaluation
from cclm.views.annotated.source import batches_of


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

    def __post_init__(self) -> None:
        """Take the engine."""
        self._engine = self.work.engine

    def image_features(self, found: RetrievalSet) -> Iterator[Tensor]:
        """Yield the features of all images of a set, in batches."""
        batches = torch.split(torch.arange(len(found.keys)), self.batch_size)
        return self.work.turns(batches, partial(self._image_features, found))

    def text_features(self, texts: Sequence[str]) -> Iterator[Tensor]:
        """Yield the features of texts, in batches."""
        return self.work.turns(list(batches_of(texts, self.batch_size)), self._text_features)

    def nearest(self, query_QE: Rows, candidate_CE: Rows, identity_Q: Tensor, identity_C: Tensor, kept: int) -> Own:
        """Let the ranks take blocks of queries in turns, and keep what they find, with their best `kept` candidates."""
        device, kept = self._engine.device, max(1, kept)

        def found(number_B: Tensor) -> Nearest:
            rows_BE, of_B = query_QE[number_B].to(device), identity_Q[number_B]
            return nearest_of_block(rows_BE, candidate_CE, of_B, identity_C, kept).to(torch.device("cpu"))

        blocks = torch.split(torch.arange(len(query_QE)), QUERIES_AT_ONCE)
        mine = self.work.own_turns(blocks, lambda number_B: (number_B, found(number_B)))
        mine = mine or [(blocks[0][:0], found(blocks[0][:0]))]  # of a rank without a block
        return Own(number_Q=torch.cat([number_B for number_B, _ in mine]), found=joined([one for _, one in mine]))

    def match(
        self, found: RetrievalSet, texts: Sequence[str], image_C: Tensor, pairs: PairNumbers, *, log_odds: bool = False
    ) -> Tensor:
        """Return what the matching head says of pairs of texts and images (`match_scores`): the ranks take turns.

        Args:
            image_C: the images that the pairs number, as the set numbers them.
        """

        def states(place_B: Tensor) -> Tensor:
            return self._encoded_images(found, image_C[place_B], "encode_images")

        def score(image_IND: Tensor, batch: PairBatch) -> Tensor:
            tokens = self._tokens([texts[number] for number in batch.text_U.tolist()])

            def probe(module: nn.Module) -> dict[str, Tensor]:
                model: Any = module.model
                text = tokens.ids_BL, tokens.mask_BL
                return {"score": match_scores(model, image_IND, batch, *text, log_odds=log_odds)}

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

    def encoded(self, text: str) -> list[int]:
        """Return a caption's ids; of one without a token (WIT has ".") those of an empty text: it counts."""
        try:
            return self.tokenizer.encode([text], self.max_tokens, self.max_words)[0]
        except DataError as error:
            if error.reason != "text_empty":
                raise
            return [self.tokenizer.bos_id, self.tokenizer.eos_id]

    def _image_features(self, found: RetrievalSet, number_B: Tensor) -> Tensor:
        return self._encoded_images(found, number_B, "get_image_features").float()

    def _encoded_images(self, found: RetrievalSet, number_B: Tensor, method: str) -> Tensor:
        """Return what a method of the model makes of some images."""
        images = (decode_image(found.image(number), where=found.keys[number]) for number in number_B.tolist())
        pixels = [torch.from_numpy(eval_image(image, self.transform)) for image in images]
        images_BCHW = torch.stack(pixels).to(self._engine.device)

        def probe(module: nn.Module) -> dict[str, Tensor]:
            return {"made": getattr(module.model, method)(images_BCHW)}

        return self._engine.evaluate(probe)["made"].cpu()

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        tokens = self._tokens(texts)

        def probe(module: nn.Module) -> dict[str, Tensor]:
            found = module.model.get_text_features(tokens.ids_BL, tokens.mask_BL)  # type: ignore[union-attr,operator]
            return {"features": found}

        return self._engine.evaluate(probe)["features"].float().cpu()

    def _tokens(self, texts: Sequence[str]) -> Tokens:
        return pad([self.encoded(text) for text in texts], self.tokenizer.pad_id).to(self._engine.device)
