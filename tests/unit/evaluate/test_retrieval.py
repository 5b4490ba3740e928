from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cclm.evaluate import retrieval
from cclm.evaluate.retrieval import chance, mean_recall, nearest, num_right, ranks, recall, same_identity


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
    assert chance(torch.tensor([1, 1]), 1579)["r10"] == pytest.approx(0.6333, abs=1e-4)


def test_chance_with_two_right_candidates_equals_what_shuffles_give() -> None:
    right_QC = torch.tensor([[True, True, *[False] * 10]]).expand(4000, -1)
    shuffled = torch.rand(4000, 12, generator=torch.Generator().manual_seed(0))
    found, expected = recall(ranks(shuffled, right_QC)), chance(right_QC.sum(1), 12)
    for name in ("r1", "r5", "r10"):
        assert found[name] == pytest.approx(expected[name], abs=2.5)


def test_chance_in_a_gallery_smaller_than_k_is_certain() -> None:
    assert chance(torch.ones(4, dtype=torch.int64), 4) == {"r1": 25.0, "r5": 100.0, "r10": 100.0}


def test_right_candidates_are_counted() -> None:
    assert num_right(torch.tensor([7, 3, 9, 8, 7]), torch.tensor([8, 7, 7, 1, 7])).tolist() == [3, 0, 0, 1, 3]


def plain_nearest(scores: list[float], right: list[bool], num_kept: int) -> list[float]:
    """The slow twin: the scores of the candidates that are kept, in words; wrong ones first among equals."""
    order = sorted(range(len(scores)), key=lambda number: (-scores[number], right[number], number))
    return [scores[number] for number in order[:num_kept]]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 7), st.integers(1, 9), st.integers(0, 12), st.integers(1, 4), st.integers(1, 4))
def test_blocks_find_what_the_whole_matrix_holds(
    data: st.DataObject, queries: int, candidates: int, num_kept: int, rows: int, columns: int
) -> None:
    """With features of a few values each product is exact, and there are ties, several right ones, and none."""

    def drawn(count: int, width: int) -> torch.Tensor:
        numbers = data.draw(st.lists(st.integers(-2, 2), min_size=count * width, max_size=count * width))
        return torch.tensor(numbers).view(count, width)

    query_QE, candidate_CE = drawn(queries, 3) / 4, drawn(candidates, 3) / 4
    identity_Q, identity_C = drawn(queries, 1)[:, 0], drawn(candidates, 1)[:, 0]
    score_QC, right_QC = query_QE @ candidate_CE.T, same_identity(identity_Q, identity_C)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "QUERIES_AT_ONCE", rows)
        patch.setattr(retrieval, "CANDIDATES_AT_ONCE", columns)
        found = nearest(query_QE, candidate_CE, identity_Q, identity_C, num_kept)
    assert torch.equal(found.rank_Q, ranks(score_QC, right_QC))
    assert found.candidate_QK.shape == (queries, min(num_kept, candidates))
    assert torch.equal(found.similarity_QK, score_QC.gather(1, found.candidate_QK))
    assert torch.equal(found.right_QK, right_QC.gather(1, found.candidate_QK))
    for query in range(queries):
        kept = found.candidate_QK[query].tolist()
        assert len(set(kept)) == len(kept)
        expected = plain_nearest(score_QC[query].tolist(), right_QC[query].tolist(), num_kept)
        assert found.similarity_QK[query].tolist() == expected
        # Of equals at the cut a wrong one is kept: as many right ones as the twin's.
        order = sorted(
            range(candidates), key=lambda number: (-float(score_QC[query, number]), bool(right_QC[query, number]))
        )
        assert sum(found.right_QK[query].tolist()) == sum(bool(right_QC[query, number]) for number in order[:num_kept])


def test_a_query_without_a_right_one_among_the_kept_stays_behind_them() -> None:
    query_QE, candidate_CE = torch.tensor([[1.0]]), torch.tensor([[0.5], [0.25], [0.125]])
    found = nearest(query_QE, candidate_CE, torch.tensor([3]), torch.tensor([1, 2, 3]), 2)
    assert found.rank_Q.tolist() == [2]
    assert found.reranked(torch.tensor([[9.0, 1.0]]), 1e-4).tolist() == [2]
    found = nearest(query_QE, candidate_CE, torch.tensor([2]), torch.tensor([1, 2, 3]), 2)
    assert found.reranked(torch.tensor([[1.0, 9.0]]), 1e-4).tolist() == [0]
    assert found.reranked(torch.tensor([[1.0, 1.0]]), 1e-4).tolist() == [1], "a tie counts against it"


def test_similarities_are_exact_where_training_is_not() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with retrieval.exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
