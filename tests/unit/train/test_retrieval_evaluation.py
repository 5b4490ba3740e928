"""What retrieval measures equals what a dense twin finds, which scores every pair and sorts in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.data.decoding import decode_image
from cclm.data.image import eval_image
from cclm.errors import ConfigError, DataError
from cclm.shardfile.reader import ShardSet
from cclm.train import mapped_rows
from cclm.train.retrieval_evaluation import RetrievalEvaluation
from cclm.train.shared_evaluation import SharedEvaluation
from tests.tiny_finetune import stand_in
from tests.tiny_retrieval import evaluation_with, settings_of


def measured(measures: RetrievalEvaluation, **options: Any) -> dict[str, Any]:
    ((name, where),) = measures.sets("test").items()
    return {one.language: one for one in measures.predict(name, where, "test", **options)}


def twin(measures: RetrievalEvaluation, folder: Path, language: str, top_k: int) -> dict[tuple[str, str], list[int]]:
    """(direction, id) → rank by features, rank after re-ranking: one pair at a time, in words."""
    shards, model, source = ShardSet(folder), measures.engine.module.model, measures.source
    records = [shards.image_text(0, number) for number in range(shards.samples_per_shard[0])]
    told = {one.identity for one in records if language in one.captions}
    texts = [
        (f"{one.key}#{number}", one.identity, torch.tensor(source.tokenizer.encode([text], 8)))
        for one in records
        for number, text in enumerate(one.captions.get(language, ()))
    ]
    images = [
        (one.key, one.identity, torch.from_numpy(eval_image(decode_image(one.image), source.config.transform))[None])
        for one in records
        if one.identity in told
    ]
    with torch.inference_mode():
        text_features = [model.get_text_features(ids) for _, _, ids in texts]
        image_features = [model.get_image_features(pixels) for _, _, pixels in images]
        every = torch.cat([pixels for _, _, pixels in images])
        rows = []
        for (_, one, ids), feature in zip(texts, text_features, strict=True):
            scores = model.score(every, ids.expand(len(every), -1))[:, 1].tolist()
            cosines = [float(feature @ other.T) for other in image_features]
            is_right = [one == other for _, other, _ in images]
            rows.append(list(zip(cosines, scores, is_right, strict=True)))
    found = {("t2i", key): ranks_in_words(row, top_k) for (key, *_), row in zip(texts, rows, strict=True)}
    columns = zip(*rows, strict=True)
    return found | {
        ("i2t", key): ranks_in_words(column, top_k) for (key, *_), column in zip(images, columns, strict=True)
    }


def ranks_in_words(rows: Sequence[tuple[float, float, bool]], top_k: int) -> list[int]:
    best = max(cosine for cosine, _, is_right in rows if is_right)
    rank = sum(cosine >= best - 1e-6 for cosine, _, is_right in rows if not is_right)
    kept = sorted(rows, key=lambda row: -(row[0] - 2e-6 * row[2]))[:top_k]
    if not any(is_right for _, _, is_right in kept):
        return [rank, max(rank, len(kept))]
    score = max(score for _, score, is_right in kept if is_right)
    return [rank, sum(other >= score - 1e-4 for _, other, is_right in kept if not is_right)]


@pytest.mark.parametrize(
    ("top_k", "in_memory"), [pytest.param(3, 1 << 20, marks=pytest.mark.slow), (50, 1 << 20), (3, 0)]
)
def test_it_finds_what_a_dense_twin_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top_k: int, in_memory: int
) -> None:
    monkeypatch.setattr(mapped_rows, "IN_MEMORY_BYTES", in_memory)
    measures = evaluation_with(settings_of(tmp_path, rerank_top_k=top_k))
    found = measured(measures)
    assert list(found) == ["de", "en"]
    moved = 0
    for language, one in found.items():
        expected = twin(measures, tmp_path / "test", language, top_k)
        lines = {(line["direction"], line["id"]): [line["rank"], line["reranked"]] for line in one.lines}
        assert lines == expected
        moved += sum(rank != reranked for rank, reranked in lines.values())
        assert one.reranked == top_k and 0 < one.cost["share"] < 1
        assert len(lines) <= one.cost["pairs"] <= len(lines) * top_k
    assert moved


def test_states_that_nobody_needs_again_do_not_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchanged: list[Any] = []
    turns = SharedEvaluation.turns

    def noted(self: SharedEvaluation, batches: Any, compute: Any) -> Any:
        for made in turns(self, batches, compute):
            exchanged.append(made)
            yield made

    monkeypatch.setattr(SharedEvaluation, "turns", noted)
    measured(evaluation_with(settings_of(tmp_path, rerank_top_k=0)))
    assert exchanged and all(states is None for _, states in exchanged)


def test_captions_and_re_ranking_are_settings(tmp_path: Path) -> None:
    found = measured(evaluation_with(settings_of(tmp_path, rerank_top_k=0, captions_per_image=1)), languages=["en"])
    assert list(found) == ["en"]
    lines = found["en"].lines
    assert len([line for line in lines if line["direction"] == "t2i"]) == 13
    assert found["en"].reranked == 0 and not found["en"].cost
    assert not any("reranked" in line for line in lines)


def test_a_model_without_matching_head_cannot_rerank(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    settings["model"]["pretraining_heads"] = False
    with pytest.raises(ConfigError) as caught:
        evaluation_with(settings)
    assert caught.value.where == "finetune.rerank_top_k"


def test_an_image_that_annotation_files_name_is_missed_at_the_start(tmp_path: Path) -> None:
    data = stand_in("retrieval", tmp_path / "data")
    settings = settings_of(tmp_path, data=str(data), test_sets={"xflickrco": "."})
    evaluation_with(settings)
    (data / "images" / "red_box.png").unlink()
    with pytest.raises(DataError) as caught:
        evaluation_with(settings)
    assert caught.value.reason == "image_missing"


def test_a_shard_that_is_missing_is_missed_at_the_start(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    ((_, where),) = evaluation_with(settings).sets("test").items()
    next(Path(where).glob("*.tar")).unlink()
    with pytest.raises(DataError) as caught:
        evaluation_with(settings)
    assert caught.value.reason == "tar_missing"


def test_data_of_ones_own_have_a_name_in_results(tmp_path: Path) -> None:
    measures = evaluation_with(settings_of(tmp_path, benchmark="mine"))
    assert [measures.task_of(name) for name in ("test", "wit")] == ["mine", "wit"]
    assert evaluation_with(settings_of(tmp_path)).task_of("test") == measures.measured.task
