"""Does the matching head know anything? Accuracy and loss on held-out images, against its prior.

As in training, each right pair stands beside two wrong ones (the image with another caption, the caption with
another image). Always answering "no match" is right in 66.7 % and always answering the prior 1:2 costs
ln 3 − (2/3) ln 2 = 0.637; a head that learned nothing sits exactly there.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cclm.evaluate.embed import Encoded
from cclm.evaluate.rerank import match_log_odds
from cclm.evaluate.retrieval import same_identity
from cclm.model.modeling_cclm import CCLMModel


@dataclass(frozen=True, kw_only=True)
class MatchingScore:
    """How well right pairs are told from wrong ones."""

    accuracy: float
    """Share of pairs answered right, in percent."""
    loss: float
    """Mean cross-entropy, in nats."""
    precision: float
    """Share of "match" answers that are right, in percent (0 if there is none)."""
    recall: float
    """Share of right pairs answered "match", in percent."""


PRIOR = MatchingScore(accuracy=200.0 / 3.0, loss=log(3.0) - 2.0 / 3.0 * log(2.0), precision=0.0, recall=0.0)
"""What a head reaches that ignores its input, at one right pair to two wrong ones."""


def matching_score(right_P: Float[Tensor, " p"], wrong_R: Float[Tensor, " r"]) -> MatchingScore:
    """Score log-odds of right pairs and of wrong pairs."""
    softplus = torch.nn.functional.softplus
    total = len(right_P) + len(wrong_R)
    loss = float((softplus(-right_P).double().sum() + softplus(wrong_R).double().sum()) / total)
    hits, false_alarms = int((right_P > 0).sum()), int((wrong_R > 0).sum())
    return MatchingScore(
        accuracy=100.0 * (hits + len(wrong_R) - false_alarms) / total,
        loss=loss,
        precision=100.0 * hits / max(1, hits + false_alarms),
        recall=100.0 * hits / len(right_P),
    )


def draw_wrong(
    similarity_QC: Float[Tensor, "q c"], same_QC: Tensor, *, hardness: float, generator: torch.Generator
) -> Int[Tensor, " q"]:
    """Draw a wrong candidate per query from softmax(hardness · similarity) (0: evenly), never one of `same_QC`."""
    uniform_QC = torch.rand(similarity_QC.shape, generator=generator).clamp(1e-9, 1 - 1e-7).to(similarity_QC.device)
    gumbel_QC = -(-uniform_QC.log()).log()
    return (hardness * similarity_QC + gumbel_QC).masked_fill(same_QC, -torch.inf).argmax(dim=1)


@torch.inference_mode()
def held_out_matching(
    model: CCLMModel,
    images: Encoded,
    texts: Encoded,
    image_identity_C: Int[Tensor, " c"],
    image_of_text_T: Int[Tensor, " t"],
    *,
    group_size: int = 128,
    seed: int = 0,
    batch_size: int = 256,
) -> dict[str, MatchingScore]:
    """Score the head on every text with its image, beside two wrong pairs each: "random" ones and "hard" ones.

    Wrong partners come from groups of `group_size` samples in a shuffled order, as in training, and hard ones are
    drawn from the softmax of cosine / temperature, as in training at full hardness.
    `image_of_text_T`: index of each text's image.
    """
    generator = torch.Generator().manual_seed(seed)
    order_T = torch.randperm(len(image_of_text_T), generator=generator).to(image_of_text_T.device)
    identity_T = image_identity_C[image_of_text_T]
    groups = []
    for text_G in torch.split(order_T, group_size):
        has_wrong_G = ~same_identity(identity_T[text_G], identity_T[text_G]).all(dim=1)
        if has_wrong_G.any():
            groups.append(text_G[has_wrong_G])
    assert groups, "a set in which everything shows the same thing has no wrong pairs"
    right = (torch.cat([image_of_text_T[text_G] for text_G in groups]), torch.cat(groups))
    right_P = match_log_odds(model, images, texts, *right, batch_size=batch_size)
    scores: dict[str, MatchingScore] = {}
    for name, hardness in (("random", 0.0), ("hard", 1.0 / float(model.temperature()))):
        wrong_image: list[Tensor] = []
        wrong_text: list[Tensor] = []
        for text_G in groups:
            image_G = image_of_text_T[text_G]
            same_GG = same_identity(image_identity_C[image_G], image_identity_C[image_G])
            similarity_GG = images.feature_NE[image_G] @ texts.feature_NE[text_G].T
            other_G = draw_wrong(similarity_GG, same_GG, hardness=hardness, generator=generator)
            another_G = draw_wrong(similarity_GG.T, same_GG, hardness=hardness, generator=generator)
            wrong_image += [image_G, image_G[another_G]]
            wrong_text += [text_G[other_G], text_G]
        wrong_R = match_log_odds(
            model, images, texts, torch.cat(wrong_image), torch.cat(wrong_text), batch_size=batch_size
        )
        scores[name] = matching_score(right_P, wrong_R)
    return scores
