"""Ranks of images and texts are the same on one, two and three ranks, whatever is left over in the last round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cclm.evaluate import pair_scores, rerank
from cclm.train import mapped_rows, retriever, shared_evaluation
from tests.ranks.harness import on_ranks
from tests.tiny_retrieval import evaluation_with, settings_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def predictions(settings: dict[str, Any], engine: str, bytes_in_memory: int) -> list[Any]:
    """Those of this rank, which are everybody's; in blocks so small that there are many, and parts of few pairs."""
    small = {
        (retriever, "QUERIES_AT_ONCE"): 5,
        (pair_scores, "IMAGES_AT_ONCE"): 6,
        (shared_evaluation, "ROUNDS_AT_ONCE"): 2,
        (rerank, "PAIRS_AT_ONCE"): 20,
        (mapped_rows, "IN_MEMORY_BYTES"): bytes_in_memory,
    }
    before = {place: getattr(*place) for place in small}
    for place, value in small.items():
        setattr(*place, value)
    try:
        measures = evaluation_with(settings, engine)
        ((name, where),) = measures.sets("test").items()
        found = measures.predict(name, where, "test")
        return [(one.language, one.lines, one.cost["pairs"], one.data_sha256) for one in found]
    finally:
        for place, value in before.items():
            setattr(*place, value)


@pytest.mark.parametrize("top_k", [3, 50])
def test_they_are_equal_on_any_number_of_ranks(tmp_path: Path, top_k: int) -> None:
    settings = settings_of(tmp_path, rerank_top_k=top_k)
    expected = predictions(settings, "plain", 1 << 20)
    assert [language for language, *_ in expected] == ["de", "en"]
    for world_size, in_memory in ((1, 100), (2, 1 << 20), (3, 100)):  # 100: features are mapped, states made again
        found = on_ranks(predictions, world_size, settings, "deepspeed", in_memory)
        assert all(of_rank == expected for of_rank in found), world_size
