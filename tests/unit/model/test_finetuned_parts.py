"""Two images, and answers: what fine-tuning puts on the pre-trained model."""

from __future__ import annotations

import pytest
import torch

from cclm.model.answer_decoder import AnswerDecoder, answer_log_probabilities, rank_answers
from cclm.model.encoders import FusionEncoder
from cclm.model.heads import MatchingHead
from cclm.model.options import FusionOptions
from cclm.model.packing import CausalLayout
from tests.tiny_families import TINY, wavy_model
from tests.unit.model.tiny import tiny_model, tiny_texts

FUSION = FusionOptions(num_layers=2, num_heads=2, feedforward_width=24, num_memories=2)


@pytest.mark.parametrize("layout", ["padded", "packed", "grouped"])
def test_the_copies_take_turns(layout: str) -> None:
    model = tiny_model(fusion={"num_layers": 2}, token_layout=layout)
    fusion = FusionEncoder(16, FUSION, layout).eval()
    fusion.start_from(model.fusion_encoder)
    ids_BL, mask_BL = tiny_texts()
    text_BLD, memories = model.encode_texts(ids_BL, mask_BL), [torch.randn(5, 3, 16), torch.randn(5, 4, 16)]
    expected = text_BLD
    for number in (0, 1):
        for memory in memories:
            single = model.fusion_encoder
            final, single.stack.final_norm = single.stack.final_norm, None
            layers, single.stack.layers = single.stack.layers, single.stack.layers[number : number + 1]
            expected = single(expected, mask_BL, memory)
            single.stack.layers, single.stack.final_norm = layers, final
    expected = model.fusion_encoder.stack.final_norm(expected) * mask_BL[..., None]
    torch.testing.assert_close(fusion(text_BLD, mask_BL, *memories), expected)
    assert not torch.allclose(fusion(text_BLD, mask_BL, *memories[::-1]), expected)


def test_a_pair_shares_keys_and_values_and_nothing_else() -> None:
    fusion = FusionEncoder(16, FUSION, "padded")
    first, second, third, _ = fusion.stack.layers
    assert second.cross_attention.key_value is first.cross_attention.key_value
    assert third.cross_attention.key_value is not first.cross_attention.key_value
    assert second.cross_attention.query is not first.cross_attention.query
    assert second.feedforward is not first.feedforward
    with pytest.raises(AssertionError, match="1 memories for 2"):
        fusion(torch.zeros(1, 2, 16), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 3, 16))


def test_a_causal_layout_hides_what_comes_later() -> None:
    mask_BL = torch.tensor([[True, True, False]])
    (mask,) = CausalLayout(batch=1, length=3, mask_BL=mask_BL).block_masks()
    assert mask is not None
    assert mask[0, 0].tolist() == [[True, False, False], [True, True, False], [True, True, True]]


@pytest.mark.parametrize("family", list(TINY))
def test_answers_are_written_from_left_to_right(family: str) -> None:
    model = wavy_model(TINY[family])
    decoder = AnswerDecoder(TINY[family]).eval()
    decoder.start_from(model)
    assert (decoder.masked_lm_decoder.weight is decoder.embeddings.words.weight) is (family == "swin")
    question, question_mask = torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    ids = torch.tensor([[0, 7, 8, 2], [0, 9, 2, 1]])
    logits = decoder(ids, ids != 1, question, question_mask)
    assert logits.shape == (2, 4, 30)
    changed = ids.clone()
    changed[0, 2] = 11
    other = decoder(changed, changed != 1, question, question_mask)
    torch.testing.assert_close(other[0, :2], logits[0, :2])
    assert (other[0, 2:] - logits[0, 2:]).abs().max() > 1e-3
    alone = decoder(ids[1:, :3], ids[1:, :3] != 1, question[1:], question_mask[1:])
    torch.testing.assert_close(alone[0], logits[1, :3])
    assert torch.isfinite(logits).all()


def test_candidates_are_ranked_by_first_token_then_whole() -> None:
    model = wavy_model(TINY["swin"])
    decoder = AnswerDecoder(TINY["swin"]).eval()
    decoder.start_from(model)
    question, question_mask = torch.randn(3, 5, 16), torch.ones(3, 5, dtype=torch.bool)
    answers = torch.tensor([[0, 7, 8, 2], [0, 9, 2, 1], [0, 12, 13, 2], [0, 20, 2, 1]])
    mask = answers != 1
    probability, order = rank_answers(decoder, question, question_mask, answers, mask, 9)
    assert probability.shape == order.shape == (3, 4)
    torch.testing.assert_close(probability.sum(1), torch.ones(3))
    assert (probability.diff(dim=1) <= 0).all()
    scores = []
    for answer, real in zip(answers, mask, strict=True):
        logits = decoder(answer.expand(3, -1), real.expand(3, -1), question, question_mask).log_softmax(-1)
        tokens = [logits[:, place - 1, answer[place]] for place in range(1, int(real.sum()))]
        scores.append(tokens[0] + sum(tokens))
    best = torch.stack(scores, 1).argmax(1)
    assert torch.equal(order[:, 0], best)
    few, _ = rank_answers(decoder, question, question_mask, answers, mask, 2)
    assert few.shape == (3, 2)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_answers_are_scored_block_by_block_as_by_whole_logits(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cclm.model.answer_decoder.TOKENS_AT_ONCE", block)
    decoder = AnswerDecoder(TINY["swin"]).eval()
    decoder.start_from(wavy_model(TINY["swin"]))
    question, question_mask = torch.randn(3, 5, 16), torch.ones(3, 5, dtype=torch.bool)
    question_mask[1, 3:] = False
    ids, of = torch.tensor([[0, 7, 8, 2], [0, 9, 2, 1], [0, 12, 13, 2], [0, 20, 2, 1]]), torch.tensor([1, 0, 1, 2])
    found = answer_log_probabilities(decoder, ids, ids != 1, question, question_mask, of)
    logits = decoder(ids, ids != 1, question[of], question_mask[of]).log_softmax(-1)
    expected = logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0] * (ids[:, 1:] != 1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_matching_head_can_have_more_classes() -> None:
    assert MatchingHead(16, 8, 5)(torch.randn(2, 16)).shape == (2, 5)
    assert tiny_model().match_logits(torch.randn(1, 2, 16), torch.ones(1, 2, dtype=torch.bool)).shape == (1, 2)
