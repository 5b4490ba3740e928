"""Both sides of the benchmark of retrieval find the same ranks, so that their ratio means something."""

from __future__ import annotations

from benchmarks.retrieval import Case, run_side


def test_both_sides_find_the_same_ranks() -> None:
    case = Case(images=30, texts=70, top_k=5, queries=20)
    ours, theirs = run_side("blocks", case), run_side("dense", case)
    assert ours["ranks"] == theirs["ranks"]
    assert {name: len(ranks) for name, ranks in ours["ranks"].items()} == {
        "t2i": 70, "i2t": 30, "t2i/reranked": 20, "i2t/reranked": 20,
    }  # fmt: skip
    assert any(ours["ranks"][way] != ours["ranks"][f"{way}/reranked"] for way in ("t2i", "i2t"))
    assert ours["peak_mb"] > 1 and ours["cpu_s"] > 0
