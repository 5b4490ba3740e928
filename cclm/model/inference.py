"""What people do with a loaded model: features, scores of pairs, re-ranking, masked words, boxes.

    processor(images, text) ─▶ pixel_values, input_ids, attention_mask
        get_image_features, get_text_features   one vector each, comparable over languages and views
        score                                    does image b belong to text b? (the fusion encoder looks at both)
        score_all, rerank                        every image with every text; the best images of each text
        fill_mask                                words for <mask>, given an image or a sentence in another language
        locate                                   the box that a text describes

Nothing here draws, and nothing knows files. Call `model.eval()` and `torch.inference_mode()` yourself; tensors go to
the model's device by the usual `.to(model.device)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.utils import ModelOutput

from .answer_decoder import answer_log_probabilities, rank_answers
from .heads import BOXES, present
from .shapes import Float, Int


@dataclass
class RerankOutput(ModelOutput):  # type: ignore[misc]  # transformers is seen untyped
    """The best images of each text, best first."""

    image: Tensor | None = None
    """(T, K) indices into the images."""
    score: Tensor | None = None
    """(T, K) what they were ordered by."""
    match_probability: Tensor | None = None
    """(T, K) probability that image and text belong together, from the matching head."""


@dataclass
class FillMaskOutput(ModelOutput):  # type: ignore[misc]  # transformers is seen untyped
    """Words for the S masked places of a batch, in reading order."""

    row: Tensor | None = None
    """(S,) which text."""
    column: Tensor | None = None
    """(S,) which token of it."""
    token_ids: Tensor | None = None
    """(S, K) ids, the most probable first."""
    probability: Tensor | None = None
    """(S, K) their probabilities."""


class InferenceMethods:
    """Methods of `CCLMModel` beyond those that a training step is made of; what they build on stands there."""

    config: Any
    fusion_encoder: Any
    answer_decoder: Any
    box_head: Any
    temperature: Any
    encode_images: Callable[..., Tensor]
    encode_texts: Callable[..., Tensor]
    project_images: Callable[..., Tensor]
    project_texts: Callable[..., Tensor]
    fuse: Callable[..., Tensor]
    match_logits: Callable[..., Tensor]
    locate_boxes: Callable[..., Tensor]
    class_logits: Callable[..., Tensor]
    masked_lm_states: Callable[..., Tensor]
    decode_with: Callable[..., Any]

    def get_image_features(self, pixel_values: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        """Unit vectors of images, comparable with those of `get_text_features`."""
        return self.project_images(self.encode_images(pixel_values))

    def get_text_features(
        self, input_ids: Int[Tensor, "c l"], attention_mask: Tensor | None = None
    ) -> Float[Tensor, "c e"]:
        """Unit vectors of tokenized texts in any language."""
        ids_CL, mask_CL = tidy_texts(self, input_ids, attention_mask)
        return self.project_texts(self.encode_texts(ids_CL, mask_CL), mask_CL)

    def score(
        self,
        pixel_values: Float[Tensor, "b *m 3 h w"],
        input_ids: Int[Tensor, "b l"],
        attention_mask: Tensor | None = None,
        *,
        batch_size: int | None = None,
    ) -> Float[Tensor, "b 2"]:
        """Matching logits of image b with text b, from the fusion encoder; class 1 means that they match.

        A model that reads several images (`fusion.num_memories`, as for NLVR2) takes that many for each text:
        (B, M, 3, H, W). `attention_mask` None: every token but `<pad>` is real. `batch_size`: pairs at a time; None:
        all at once.

        Raises:
            ValueError: another number of images than the model reads for a text, or of texts.
        """
        _check_rows(pixel_values, input_ids)
        texts, size = tidy_texts(self, input_ids, attention_mask), batch_size or len(input_ids)
        parts = zip(*(torch.split(given, size) for given in (pixel_values, *texts)), strict=True)
        return torch.cat([self.match_logits(_look(self, *part), part[2]) for part in parts])

    def score_all(
        self,
        pixel_values: Float[Tensor, "i 3 h w"],
        input_ids: Int[Tensor, "t l"],
        attention_mask: Tensor | None = None,
        *,
        batch_size: int = 64,
    ) -> Float[Tensor, "i t 2"]:
        """Matching logits of every image with every text; each is encoded once, `batch_size` pairs are fused at once
        (ValueError: a model that reads several images).
        """
        image_IND, text_TLD, mask_TL = _encode(self, pixel_values, input_ids, attention_mask, "score_all")
        pair_P = torch.arange(len(image_IND) * len(text_TLD), device=text_TLD.device)
        logits_P2 = _match_pairs(self, (image_IND, text_TLD, mask_TL), pair_P, batch_size)
        return logits_P2.view(len(image_IND), len(text_TLD), 2)

    def rerank(
        self,
        pixel_values: Float[Tensor, "i 3 h w"],
        input_ids: Int[Tensor, "t l"],
        attention_mask: Tensor | None = None,
        *,
        top_k: int = 16,
        match_weight: float = 1.0,
        similarity_weight: float = 1.0,
        batch_size: int = 64,
    ) -> RerankOutput:
        """The images of each text: the dual encoder proposes `top_k`, the fusion encoder orders them.

        score = match_weight · log-odds of a match + similarity_weight · cosine / temperature

        Raises:
            ValueError: a model that reads several images.
        """
        if top_k < 1:
            raise ValueError(f"rerank: expected top_k of at least 1, got {top_k}. Leave it away for 16.")
        image_IND, text_TLD, mask_TL = _encode(self, pixel_values, input_ids, attention_mask, "rerank")
        cosine_TI = self.project_texts(text_TLD, mask_TL) @ self.project_images(image_IND).T
        cosine_TK, image_TK = cosine_TI.topk(min(top_k, len(image_IND)), dim=1)
        row_T1 = torch.arange(len(text_TLD), device=text_TLD.device)[:, None]
        pair_P = (image_TK * len(text_TLD) + row_T1).flatten()
        logits_P2 = _match_pairs(self, (image_IND, text_TLD, mask_TL), pair_P, batch_size).float()
        odds_TK = (logits_P2[:, 1] - logits_P2[:, 0]).view(image_TK.shape)
        score_TK = match_weight * odds_TK + similarity_weight * (cosine_TK / self.temperature()).float()
        score_TK, order_TK = score_TK.sort(dim=1, descending=True, stable=True)
        return RerankOutput(
            image=image_TK.gather(1, order_TK),
            score=score_TK,
            match_probability=odds_TK.gather(1, order_TK).sigmoid(),
        )

    def masked_lm_logits(
        self,
        input_ids: Int[Tensor, "b l"],
        attention_mask: Tensor | None = None,
        *,
        slot_BL: Tensor,
        pixel_values: Tensor | None = None,
        memory_ids: Tensor | None = None,
        memory_attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "s v"]:
        """Logits over the vocabulary at the places where `slot_BL` is True, in reading order; see `fill_mask`
        (ValueError: a model without masked-LM head, or not exactly one of image and sentence).
        """
        if (pixel_values is None) == (memory_ids is None):
            raise ValueError(
                "masked tokens: expected pixel_values or memory_ids (the same sentence in another language), got "
                f"{'neither' if memory_ids is None else 'both'}. The hidden words are read from one of them."
            )
        ids_BL, mask_BL, slot_BL = tidy_texts(self, input_ids, attention_mask, slot_BL)
        if pixel_values is not None:
            fused_BLD = _look(self, pixel_values, ids_BL, mask_BL)
        else:
            assert memory_ids is not None, "exactly one of the two, see above"
            memory_ids, memory_mask_BN = tidy_texts(self, memory_ids, memory_attention_mask)
            memory_BND = self.encode_texts(memory_ids, memory_mask_BN)
            fused_BLD = self.fuse(self.encode_texts(ids_BL, mask_BL), mask_BL, memory_BND, memory_mask_BN)
        logits_SV: Tensor = self.decode_with(self.masked_lm_states(fused_BLD[slot_BL]), functional.linear)
        return logits_SV

    def fill_mask(
        self,
        input_ids: Int[Tensor, "b l"],
        attention_mask: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        memory_ids: Tensor | None = None,
        memory_attention_mask: Tensor | None = None,
        top_k: int = 5,
        mask_token_id: int | None = None,
    ) -> FillMaskOutput:
        """The likeliest tokens for each `<mask>`, given what the text is about.

        Args:
            input_ids: texts with `<mask>`: `processor(text=…, split_special_tokens=False)`, else "<mask>" is text.
            attention_mask: 1 where a token is real; None: everywhere but at `<pad>`.
            pixel_values: an image for each text; or instead of it
            memory_ids: a sentence for each text, in any language;
            memory_attention_mask: its real tokens.
            top_k: how many.
            mask_token_id: of `<mask>`; None: as the config says.

        Raises:
            ValueError: a model without masked-LM head, a text without `<mask>`, or not exactly one of image and
                sentence.
        """
        wanted = getattr(self.config, "mask_token_id", None) if mask_token_id is None else mask_token_id
        if wanted is None:
            raise ValueError(
                "fill_mask: expected mask_token_id (the config names none), got none. Pass the tokenizer's."
            )
        slot_BL = input_ids == wanted
        if not bool(slot_BL.any(1).all()):
            raise ValueError(
                "fill_mask: expected <mask> in every text, got one without. Write <mask> for a word, and call the "
                "processor with split_special_tokens=False: without it, <mask> in a text is text."
            )
        memory = {"memory_ids": memory_ids, "memory_attention_mask": memory_attention_mask}
        logits_SV = self.masked_lm_logits(
            input_ids, attention_mask, slot_BL=slot_BL, pixel_values=pixel_values, **memory
        )
        probability_SK, token_SK = logits_SV.float().softmax(-1).topk(top_k, dim=-1)
        row_S, column_S = slot_BL.nonzero(as_tuple=True)
        return FillMaskOutput(row=row_S, column=column_S, token_ids=token_SK, probability=probability_SK)

    def locate(
        self,
        pixel_values: Float[Tensor, "b 3 h w"],
        input_ids: Int[Tensor, "b l"],
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "b 4"]:
        """Where in image b is what text b describes? Centre x, centre y, width, height as shares of the image.

        `CCLMProcessor.post_process_boxes` turns them into pixels.

        Raises:
            ValueError: a model without box head.
        """
        present(self.box_head, *BOXES)
        return self.locate_boxes(*_fused(self, pixel_values, input_ids, attention_mask))

    def classify(
        self,
        pixel_values: Float[Tensor, "b *m 3 h w"],
        input_ids: Int[Tensor, "b l"],
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "b classes"]:
        """Logits of a fine-tuned classifier (XVNLI; NLVR2 and MaRVL with two images for each text, (B, 2, 3, H, W)).

        Raises:
            ValueError: a model without classifier, or another number of images than it reads.
        """
        if self.config.class_images == 1:
            fused_BLD, mask_BL = _fused(self, pixel_values, input_ids, attention_mask)
            return self.class_logits([fused_BLD], mask_BL)
        _check_rows(pixel_values, input_ids)
        ids_BL, mask_BL = tidy_texts(self, input_ids, attention_mask)
        memories = _several_images(self, pixel_values, self.config.class_images)
        text_BLD = self.encode_texts(ids_BL, mask_BL)
        return self.class_logits([self.fuse(text_BLD, mask_BL, memory_BND) for memory_BND in memories], mask_BL)

    def answer(
        self,
        pixel_values: Float[Tensor, "b 3 h w"],
        input_ids: Int[Tensor, "b l"],
        attention_mask: Tensor | None = None,
        *,
        answer_ids: Int[Tensor, "c n"],
        answer_attention_mask: Tensor | None = None,
        top_k: int = 128,
    ) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
        """The likeliest of C tokenized answers to each question: probabilities and rows of `answer_ids`, best first
        (ValueError: a model without answer decoder).
        """
        decoder = present(self.answer_decoder, "answers", "answer_decoder: true")
        question = _fused(self, pixel_values, input_ids, attention_mask)
        answer_ids, answer_mask = tidy_texts(self, answer_ids, answer_attention_mask)
        return rank_answers(decoder, *question, answer_ids, answer_mask, top_k)

    def score_answers(
        self,
        pixel_values: Float[Tensor, "b 3 h w"],
        input_ids: Int[Tensor, "b l"],
        attention_mask: Tensor | None = None,
        *,
        answer_ids: Int[Tensor, "a n"],
        answer_attention_mask: Tensor | None = None,
        question_of: Int[Tensor, " a"],
    ) -> Float[Tensor, " a"]:
        """Mean log-probability of the tokens of answers, each of which is one to question `question_of[a]`.

        For multiple choice: a long choice is not worse than a short one for its length.

        Raises:
            ValueError: a model without answer decoder.
        """
        decoder = present(self.answer_decoder, "answers", "answer_decoder: true")
        question = _fused(self, pixel_values, input_ids, attention_mask)
        answer_ids, answer_mask = tidy_texts(self, answer_ids, answer_attention_mask)
        found = answer_log_probabilities(decoder, answer_ids, answer_mask, *question, question_of)
        return found.sum(1) / answer_mask[:, 1:].sum(1)


def tidy_texts(
    model: InferenceMethods, input_ids: Tensor, attention_mask: Tensor | None, *beside: Tensor
) -> list[Tensor]:
    """Token ids, their bool mask and what stands `beside` them as in training, from whatever a tokenizer gives.

    Padding on the left (`padding_side="left"`) comes to stand behind; without a mask every token but `<pad>` is real.
    """
    pad_id = model.config.text["pad_token_id"]
    mask_BL = input_ids != pad_id if attention_mask is None else attention_mask.bool()
    padding_B1 = (~mask_BL).long().cumprod(1).sum(1, keepdim=True)
    order_BL = (torch.arange(mask_BL.shape[1], device=mask_BL.device) + padding_B1) % mask_BL.shape[1]
    return [cells_BL.gather(1, order_BL) for cells_BL in (input_ids, mask_BL, *beside)]


def _fused(
    model: InferenceMethods, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Fused states of what a tokenizer gives, and their mask."""
    ids_BL, mask_BL = tidy_texts(model, input_ids, attention_mask)
    return _look(model, pixel_values, ids_BL, mask_BL), mask_BL


def _look(model: InferenceMethods, pixel_values: Tensor, input_ids: Tensor, mask_BL: Tensor) -> Tensor:
    """Fused states of texts that each read their image, or their several images."""
    _check_rows(pixel_values, input_ids)
    number = model.fusion_encoder.num_memories
    memory = model.encode_images(pixel_values) if number == 1 else _several_images(model, pixel_values, number)
    return model.fuse(model.encode_texts(input_ids, mask_BL), mask_BL, memory)


def _check_rows(pixel_values: Tensor, input_ids: Tensor) -> None:
    if len(pixel_values) != len(input_ids):
        raise ValueError(
            f"pixel_values: expected images for each text, got {len(pixel_values)} for {len(input_ids)} texts. "
            "`score_all` takes every image with every text."
        )


def _several_images(model: InferenceMethods, pixel_values: Tensor, number: int) -> Sequence[Tensor]:
    """The first encoded images of all texts, the second ones, …"""
    if pixel_values.ndim != 5 or pixel_values.shape[1] != number:
        raise ValueError(
            f"pixel_values: expected {number} images for each text, shape (B, {number}, 3, H, W), got "
            f"{tuple(pixel_values.shape)}. Give the processor lists of {number} images."
        )
    image_BND = model.encode_images(pixel_values.flatten(0, 1))
    return image_BND.view(-1, number, *image_BND.shape[1:]).unbind(1)


def _match_pairs(
    model: InferenceMethods, encoded: tuple[Tensor, Tensor, Tensor], pair_P: Tensor, batch_size: int
) -> Tensor:
    """Matching logits (P, 2) of pairs; pair number = image · texts + text."""
    image_IND, text_TLD, mask_TL = encoded
    found = []
    for chosen_B in torch.split(pair_P, batch_size):
        row_B, column_B = chosen_B % len(text_TLD), chosen_B // len(text_TLD)
        fused_BLD = model.fuse(text_TLD[row_B], mask_TL[row_B], image_IND[column_B])
        found.append(model.match_logits(fused_BLD, mask_TL[row_B]))
    return torch.cat(found)


def _encode(
    model: InferenceMethods, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None, method: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Encoded images and texts, and the texts' mask; raises if a text is about several images."""
    if model.fusion_encoder.num_memories > 1:
        raise ValueError(
            f"{method}: expected a model that reads one image for a text, got one that reads "
            f"{model.fusion_encoder.num_memories}. Use `score` with as many images for each text."
        )
    ids_TL, mask_TL = tidy_texts(model, input_ids, attention_mask)
    return model.encode_images(pixel_values), model.encode_texts(ids_TL, mask_TL), mask_TL
