from __future__ import annotations

from typing import Any

import pytest
import torch

from cclm.evaluate.embed import encode_images, encode_texts
from cclm.evaluate.rerank import RULE_GRID, RerankRule, match_log_odds, rerank
from cclm.evaluate.retrieval import recall

DUAL_ONLY = RerankRule(match_weight=0.0, similarity_weight=1.0)


def encoded(model: Any, pictures: Any, words: Any, names: Any) -> Any:  # type: ignore[no-untyped-def]
    images = encode_images(model, pictures(names))
    texts = encode_texts(model, *words(names, [1 + number % 3 for number in range(len(names))]))
    identity = torch.tensor(names)
    return images, texts, identity, identity


def test_log_odds_do_not_depend_on_batches_or_order(naming_model: Any, pictures: Any, words: Any) -> None:
    model = naming_model(8)
    images, texts, _, _ = encoded(model, pictures, words, [0, 1, 2, 3, 4])
    image_P, text_P = torch.tensor([0, 1, 4, 2, 0]), torch.tensor([4, 1, 4, 3, 0])
    for batch_size in (1, 2, 100):
        found_P = match_log_odds(model, images, texts, image_P, text_P, batch_size=batch_size)
        assert found_P.tolist() == [-4.0, 4.0, 4.0, -4.0, 4.0]


def test_a_knowing_head_repairs_a_confused_dual_encoder_in_both_directions(
    naming_model: Any, pictures: Any, words: Any
) -> None:
    # Images are turned by 1.2 steps of the circle: the right picture is the third-best or so for each text.
    model = naming_model(12, dual_error=1.2 * 2 * torch.pi / 12)
    for found in rerank(model, *encoded(model, pictures, words, list(range(12))), top_k=4):
        assert recall(found.found.rank_Q)["r1"] == 0.0
        assert recall(found.ranks(RerankRule()))["r1"] == 100.0
        assert torch.equal(found.ranks(DUAL_ONLY), found.found.rank_Q)


def test_what_is_not_among_the_candidates_keeps_its_place(naming_model: Any, pictures: Any, words: Any) -> None:
    model = naming_model(12, dual_error=2.2 * 2 * torch.pi / 12)
    for found in rerank(model, *encoded(model, pictures, words, list(range(12))), top_k=2):
        assert not found.found.right_QK.any()
        assert torch.equal(found.ranks(RerankRule()), found.found.rank_Q)
        assert int(found.found.rank_Q.min()) >= 2


def test_each_pair_is_fused_once_although_both_directions_want_it(naming_model: Any, pictures: Any, words: Any) -> None:
    model = naming_model(6)
    rerank(model, *encoded(model, pictures, words, list(range(6))), top_k=6)
    assert model.pairs_fused == 36


def test_k_may_exceed_the_gallery(naming_model: Any, pictures: Any, words: Any) -> None:
    model = naming_model(3)
    forward, backward = rerank(model, *encoded(model, pictures, words, [0, 1, 2]), top_k=50)
    assert forward.found.candidate_QK.shape == backward.found.candidate_QK.shape == (3, 3)


def test_two_pictures_of_one_name_tie_for_a_head_that_sees_only_names(
    naming_model: Any, pictures: Any, words: Any
) -> None:
    # Same name, other identity: the head cannot tell them apart, so each costs the other its first place.
    model = naming_model(8)
    images, texts, _, _ = encoded(model, pictures, words, [5, 5, 1])
    identity = torch.tensor([100, 101, 102])
    forward, backward = rerank(model, images, texts, identity, identity, top_k=3)
    assert forward.ranks(RerankRule()).tolist() == [1, 1, 0]
    assert backward.ranks(RerankRule()).tolist() == [1, 1, 0]


def test_selecting_queries_selects_everything_about_them(naming_model: Any, pictures: Any, words: Any) -> None:
    model = naming_model(8, dual_error=0.9)
    _, backward = rerank(model, *encoded(model, pictures, words, list(range(8))), top_k=3)
    keep = torch.tensor([False, True] * 4)
    part = backward.select(keep)
    assert torch.equal(part.ranks(RerankRule()), backward.ranks(RerankRule())[keep])
    assert part.found.candidate_QK.shape == (4, 3)


@pytest.mark.parametrize("rule", RULE_GRID)
def test_every_rule_weighs_something(rule: RerankRule) -> None:
    assert rule.match_weight + rule.similarity_weight > 0
