from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cclm.evaluate.retrieval import chance, mean_recall, ranks, recall, same_identity, top_candidates


def plain_rank(scores: list[float], right: list[bool]) -> int:
    """The slow twin: one query, in words."""
    if not any(right):
        return len(scores)
    best = max(score for score, ok in zip(scores, right, strict=True) if ok)
    return sum(score >= best for score, ok in zip(scores, right, strict=True) if not ok)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=5, max_size=5),
        min_size=1,
        max_size=4,
    )
)
def test_ranks_equal_the_slow_twin(rows: list[list[tuple[int, bool]]]) -> None:
    score_QC = torch.tensor([[float(score) for score, _ in row] for row in rows])
    right_QC = torch.tensor([[ok for _, ok in row] for row in rows])
    expected = [plain_rank([float(score) for score, _ in row], [ok for _, ok in row]) for row in rows]
    assert ranks(score_QC, right_QC).tolist() == expected


def test_a_model_that_says_the_same_about_everything_gets_nothing() -> None:
    right_QC = torch.eye(20, dtype=torch.bool)
    found = recall(ranks(torch.ones(20, 20), right_QC))
    assert found == {"r1": 0.0, "r5": 0.0, "r10": 0.0}


def test_a_difference_within_rounding_is_a_tie() -> None:
    score_QC = torch.tensor([[0.5, 0.5 - 1e-7, 0.1]])
    right_QC = torch.tensor([[True, False, False]])
    assert ranks(score_QC, right_QC).tolist() == [1]
    assert ranks(score_QC, right_QC, tolerance=0.0).tolist() == [0]


def test_several_right_candidates_are_no_rivals_and_the_best_one_counts() -> None:
    identity_Q, identity_C = torch.tensor([7, 8]), torch.tensor([7, 8, 7, 9])
    right_QC = same_identity(identity_Q, identity_C)
    assert right_QC.tolist() == [[True, False, True, False], [False, True, False, False]]
    score_QC = torch.tensor([[0.1, 0.5, 0.9, 0.8], [0.9, 0.5, 0.8, 0.1]])
    assert ranks(score_QC, right_QC).tolist() == [0, 2]


def test_recall_counts_ranks_below_k() -> None:
    found = recall(torch.tensor([0, 1, 4, 5, 9, 10]))
    assert found == pytest.approx({"r1": 100 / 6, "r5": 50.0, "r10": 500 / 6})


def test_mean_recall_weighs_languages_equally() -> None:
    rows = [{"r1": 10.0, "r5": 20.0, "r10": 30.0}, {"r1": 20.0, "r5": 40.0, "r10": 60.0}]
    assert mean_recall(rows) == {"r1": 15.0, "r5": 30.0, "r10": 45.0}


def test_chance_of_one_right_among_1579() -> None:
    right_QC = torch.zeros(2, 1579, dtype=torch.bool)
    right_QC[:, 3] = True
    assert chance(right_QC)["r10"] == pytest.approx(0.6333, abs=1e-4)


def test_chance_with_two_right_candidates_equals_what_shuffles_give() -> None:
    right_QC = torch.tensor([[True, True, *[False] * 10]]).expand(4000, -1)
    shuffled = torch.rand(4000, 12, generator=torch.Generator().manual_seed(0))
    found, expected = recall(ranks(shuffled, right_QC)), chance(right_QC)
    for name in ("r1", "r5", "r10"):
        assert found[name] == pytest.approx(expected[name], abs=2.5)


def test_chance_in_a_gallery_smaller_than_k_is_certain() -> None:
    assert chance(torch.eye(4, dtype=torch.bool)) == {"r1": 25.0, "r5": 100.0, "r10": 100.0}


def test_top_candidates_prefers_wrong_ones_on_a_tie_and_takes_all_of_a_small_gallery() -> None:
    score_QC = torch.tensor([[0.5, 0.5, 0.2]])
    right_QC = torch.tensor([[True, False, False]])
    assert top_candidates(score_QC, right_QC, 1).tolist() == [[1]]
    assert sorted(top_candidates(score_QC, right_QC, 10)[0].tolist()) == [0, 1, 2]
