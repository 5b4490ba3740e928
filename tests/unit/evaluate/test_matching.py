from __future__ import annotations

from math import exp, log
from typing import Any

import pytest
import torch

from cclm.evaluate.embed import encode_images, encode_texts
from cclm.evaluate.matching import PRIOR, draw_wrong, held_out_matching, matching_score


def test_the_prior_is_what_a_constant_answer_costs() -> None:
    constant = log(0.5)  # odds 1 : 2
    found = matching_score(torch.full((10,), constant), torch.full((20,), constant))
    assert found.loss == pytest.approx(PRIOR.loss, abs=1e-6) == pytest.approx(0.6365, abs=1e-4)
    assert found.accuracy == pytest.approx(PRIOR.accuracy)
    assert found.precision == found.recall == 0.0


def test_scores_of_a_hand_made_case() -> None:
    found = matching_score(torch.tensor([2.0, -1.0]), torch.tensor([-3.0, 0.5, -1.0, -2.0]))
    assert found.accuracy == pytest.approx(100 * 4 / 6)
    assert found.precision == 50.0 and found.recall == 50.0
    losses = [
        log(1 + exp(-2)),
        log(1 + exp(1)),
        log(1 + exp(-3)),
        log(1 + exp(0.5)),
        log(1 + exp(-1)),
        log(1 + exp(-2)),
    ]
    assert found.loss == pytest.approx(sum(losses) / 6)


def test_draws_follow_the_softmax_and_never_take_a_right_one() -> None:
    similarity = torch.tensor([[0.9, 0.5, 0.1]]).expand(20_000, -1)
    same = torch.tensor([[True, False, False]]).expand(20_000, -1)
    for hardness, expected in ((0.0, 0.5), (3.0, 1 / (1 + exp(-3.0 * 0.4)))):
        drawn = draw_wrong(similarity, same, hardness=hardness, generator=torch.Generator().manual_seed(1))
        assert not (drawn == 0).any()
        assert float((drawn == 1).double().mean()) == pytest.approx(expected, abs=0.015)


def scores(model: Any, pictures: Any, words: Any, names: Any, **options: Any) -> Any:  # type: ignore[no-untyped-def]
    images = encode_images(model, pictures(names))
    texts = encode_texts(model, *words(names, [1] * len(names)))
    return held_out_matching(model, images, texts, torch.tensor(names), torch.arange(len(names)), **options)


def test_a_knowing_head_is_right_and_a_dumb_one_sits_at_the_prior_accuracy(
    naming_model: Any, pictures: Any, words: Any
) -> None:
    names = list(range(30))
    knowing = scores(naming_model(30), pictures, words, names, group_size=8)
    assert set(knowing) == {"random", "hard"}
    assert all(score.accuracy == 100.0 for score in knowing.values())
    dumb = scores(naming_model(30, knows=False), pictures, words, names, group_size=8)
    assert all(score.accuracy == pytest.approx(PRIOR.accuracy) for score in dumb.values())
    assert all(score.loss == pytest.approx(log(2.0)) for score in dumb.values())


def test_positives_stand_one_to_two_and_samples_without_a_stranger_are_left_out(
    naming_model: Any, pictures: Any, words: Any
) -> None:
    model = naming_model(8)
    scores(model, pictures, words, [1, 1, 1, 2], group_size=4)
    assert model.pairs_fused == 4 + 2 * 8
    lonely = naming_model(8)
    scores(lonely, pictures, words, [1, 2, 3], group_size=2)
    assert lonely.pairs_fused == 2 + 2 * 4, "the last group of one has no wrong partner"


def test_the_same_seed_draws_the_same_pairs(naming_model: Any, pictures: Any, words: Any) -> None:
    class Guessing(naming_model):
        def match_logits(self, fused_BLD: Any, mask_BL: Any) -> Any:  # type: ignore[no-untyped-def]
            return torch.stack([torch.zeros(len(fused_BLD)), fused_BLD[:, 0, 0].sin()], dim=-1)

    runs = [scores(Guessing(40), pictures, words, list(range(40)), group_size=10, seed=seed) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]
