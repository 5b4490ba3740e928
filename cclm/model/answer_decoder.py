"""The decoder of generative question answering (xGQA): writes the answer token by token, reading the fused question.

    answer ids ─ embeddings ─ layers (causal self-attention → attention to the question → feed-forward) ─ logits

Its layers start as copies of the fusion layers, its embeddings and masked-LM head as copies of the model's.
"""

from __future__ import annotations

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
        question_BND: Float[Tensor, "b n d"],
        question_mask_BN: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b l v"]:
        """Logits at each place for the token after it."""
        layout = CausalLayout(batch=ids_BL.shape[0], length=ids_BL.shape[1], mask_BL=mask_BL)
        positions = layout.take_ids(token_positions(ids_BL, self.text_options))
        rows_TD = self.embeddings(layout.take_ids(ids_BL), positions)
        rows_TD = self.stack(rows_TD, question_BND, reading=plan_reading(layout, question_mask_BN, None), layout=layout)
        logits_TV: Tensor = self.masked_lm_decoder(self.masked_lm_transform(rows_TD), functional.linear)
        return logits_TV.view(*ids_BL.shape, -1)


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
    question = question_BND.repeat_interleave(top_k, 0), question_mask_BN.repeat_interleave(top_k, 0)
    logits = decoder(ids, mask, *question)
    log_probability = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    whole_BK = (log_probability * mask[:, 1:]).sum(1).view(num_questions, top_k)
    probability, order = (chosen_BK + whole_BK).softmax(1).sort(1, descending=True)
    return probability, row_BK.gather(1, order)
