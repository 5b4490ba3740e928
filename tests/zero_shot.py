"""What `cclm evaluate` measures of a checkpoint or export, by the names that a run in training has for it."""

from __future__ import annotations

from pathlib import Path

from cclm.config import RunConfig
from cclm.evaluate.rerank import RerankRule
from cclm.evaluate.scores import DIRECTIONS
from cclm.evaluate.zero_shot import measure
from cclm.hub.open import open_model
from cclm.retrieve.measure import load_set
from cclm.shardfile.reader import ShardSet

MATCH_ALONE = RerankRule(similarity_weight=0.0)


def evaluated(config: RunConfig, model: Path) -> dict[str, float]:
    """Measure every set of the configuration in all of its languages."""
    settings, opened = config.evaluation, open_model(model)
    assert settings is not None
    numbers: dict[str, float] = {}
    for name, folder in settings.sets.items():
        languages = sorted(ShardSet(Path(folder)).languages)
        found = measure(opened.model, load_set(Path(folder), opened, languages).tensors, top_k=settings.rerank_top_k)
        rules = {"": None, **({"reranked_": MATCH_ALONE} if settings.rerank_top_k else {})}
        for group, members in {"all": languages, **{one: [one] for one in languages}}.items():
            for order, rule in rules.items():
                recalls = {
                    f"{way}_{cut}": value
                    for way in DIRECTIONS
                    for cut, value in found.group_recall(members, way, rule).items()
                }
                recalls["mean_recall"] = sum(recalls.values()) / len(recalls)
                numbers |= {f"{name}/{group}/{order}{number}": value for number, value in recalls.items()}
    return numbers
