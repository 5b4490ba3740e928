"""The decoder of generative question answering (xGQA): writes the answer token by token, reading the fused question.

    answer ids ─ embeddings ─ layers (causal self-attention → attention to the question → feed-forward) ─ logits

Its layers start as copies of the fusion layers, its embeddings and masked-LM head as copies of the model's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .encoders import TextEmbeddings, token_positions
from .heads import MaskedLMDecoder, MaskedLMTransform
from .layers import LayerStack
from .options import ModelOptions
from .packing import CausalLayout
from .reading import plan_reading
from .shapes import Bool, Float, Int

TOKENS_AT_ONCE = 512
"""Whose logits over the vocabulary exist at the same time: of a quarter of a million words half a gigabyte."""


class AnswerDecoder(nn.Module):
    """Next-token logits of answers, given the states of their questions."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.text_options = options.text
        width = options.width
        self.embeddings = TextEmbeddings(width, options.text)
        self.stack = LayerStack(width, options.fusion, cross=True, null_memory=options.fusion.null_memory)
        self.masked_lm_transform = MaskedLMTransform(width, options.masked_lm_eps)
        self.masked_lm_decoder = MaskedLMDecoder(width, options.text.vocab_size)
        words = self.embeddings.words.weight
        if options.tie_decoder and isinstance(words, nn.Parameter):
            self.masked_lm_decoder.weight = words

    def start_from(self, model: Any) -> None:
        """Copy the pre-trained fusion layers, embeddings and masked-LM head of a `CCLMModel` (it must have one).

        (The class itself is not imported: it imports this file, and an export is loaded file by file.)
        """
        assert model.masked_lm_transform is not None
        assert model.masked_lm_decoder is not None
        self.embeddings.load_state_dict(model.text_encoder.embeddings.state_dict())
        self.stack.load_state_dict(model.fusion_encoder.stack.state_dict())
        self.masked_lm_transform.load_state_dict(model.masked_lm_transform.state_dict())
        self.masked_lm_decoder.load_state_dict(model.masked_lm_decoder.state_dict())

    def forward(
        self,
        ids_BL: Int[Tensor, "b l"],
        mask_BL: Bool[Tensor, "b l"],
        question_QND: Float[Tensor, "q n d"],
        question_mask_QN: Bool[Tensor, "q n"],
        question_of_B: Int[Tensor, " b"] | None = None,
        read: Callable[[Tensor, Tensor, Tensor], Tensor] = functional.linear,
    ) -> Float[Tensor, "b l *v"]:
        """Logits at each place for the token after it; or what `read(hidden_TD, weight_VD, bias_V)` makes instead.

        `question_of_B`: which question each answers, whose keys and values are then computed once; None: its own.
        """
        layout = CausalLayout(batch=ids_BL.shape[0], length=ids_BL.shape[1], mask_BL=mask_BL)
        positions = layout.take_ids(token_positions(ids_BL, self.text_options))
        rows_TD = self.embeddings(layout.take_ids(ids_BL), positions)
        reading = plan_reading(layout, question_mask_QN, question_of_B)
        rows_TD = self.stack(rows_TD, question_QND, reading=reading, layout=layout)
        found: Tensor = self.masked_lm_decoder(self.masked_lm_transform(rows_TD), read)
        return found.view(*ids_BL.shape, *found.shape[1:])


@torch.no_grad()
def answer_log_probabilities(
    decoder: AnswerDecoder,
    answer_AL: Int[Tensor, "a l"],
    answer_mask_AL: Bool[Tensor, "a l"],
    question_QND: Float[Tensor, "q n d"],
    question_mask_QN: Bool[Tensor, "q n"],
    question_of_A: Int[Tensor, " a"],
) -> Float[Tensor, "a t"]:
    """Log-probability of each token of answers behind `<s>`, given its question and those before it; 0 in the padding.

    One call of the decoder, however many answers: under ZeRO-3 all ranks make the same calls.
    """
    target_T = functional.pad(answer_AL[:, 1:], (0, 1)).flatten()
    read = partial(_log_probabilities, target_T=target_T)
    found_AL: Tensor = decoder(answer_AL, answer_mask_AL, question_QND, question_mask_QN, question_of_A, read)
    return found_AL[:, :-1] * answer_mask_AL[:, 1:]


def _log_probabilities(hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor, target_T: Tensor) -> Tensor:
    """Log-probabilities of the targets, block by block: the logits of all places would not fit."""
    found = []
    blocks = (torch.split(values, TOKENS_AT_ONCE) for values in (hidden_TD, target_T))
    for hidden_BD, target_B in zip(*blocks, strict=True):
        logits_BV = functional.linear(hidden_BD, weight_VD, bias_V).float()
        found.append(-functional.cross_entropy(logits_BV, target_B, reduction="none"))
    return torch.cat(found)


@torch.no_grad()
def rank_answers(
    decoder: AnswerDecoder,
    question_BND: Float[Tensor, "b n d"],
    question_mask_BN: Bool[Tensor, "b n"],
    answer_CL: Int[Tensor, "c l"],
    answer_mask_CL: Bool[Tensor, "c l"],
    top_k: int,
) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
    """Rank candidate answers: those with the likeliest first token first, these by their whole likelihood.

    The first token counts twice, once for the choice and once in the likelihood, as published.

    Args:
        decoder: the answer decoder.
        question_BND: fused states of B questions.
        question_mask_BN: their real tokens.
        answer_CL: C candidates, from `<s>` to `</s>`, padded.
        answer_mask_CL: their real tokens.
        top_k: how many go through the decoder whole; at most C.

    Returns:
        Probabilities among the chosen and their rows in `answer_CL`, best first.
    """
    num_questions, top_k = question_BND.shape[0], min(top_k, answer_CL.shape[0])
    start_B1 = answer_CL[:1, :1].expand(num_questions, 1)
    first_BV = decoder(start_B1, torch.ones_like(start_B1, dtype=torch.bool), question_BND, question_mask_BN)[:, 0]
    chosen_BK, row_BK = first_BV.float().log_softmax(1)[:, answer_CL[:, 1]].topk(top_k, dim=1)
    ids, mask = answer_CL[row_BK.flatten()], answer_mask_CL[row_BK.flatten()]
    question_of = torch.arange(num_questions, device=ids.device).repeat_interleave(top_k)
    whole = answer_log_probabilities(decoder, ids, mask, question_BND, question_mask_BN, question_of)
    whole_BK = whole.sum(1).view(num_questions, top_k)
    probability, order = (chosen_BK + whole_BK).softmax(1).sort(1, descending=True)
    return probability, row_BK.gather(1, order)
