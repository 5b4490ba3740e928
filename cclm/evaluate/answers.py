"""Choose an answer from a closed list as the published xGQA evaluation does (spec §6.2)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cclm.model.answer_decoder import AnswerDecoder


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
