"""A small, uneven set of images with captions, and the evaluation of an untrained network on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cclm.config import RunConfig
from cclm.distributed.collectives import collectives
from cclm.distributed.topology import Topology
from cclm.engine.ds_config import resolve_ds_file
from cclm.evaluate.scores import RECALLS
from cclm.recipe.epochs import with_epochs
from cclm.train.evaluation import TaskMetric, evaluation_of
from cclm.train.retrieval_evaluation import RetrievalEvaluation
from cclm.types import ImageTextRecord
from finetune.stand_in import LANGUAGES, THINGS, scene_bytes, write_image_set
from tests.tiny_finetune import alone, write_tokenizer
from tests.tiny_training import as_config, dataset_of, module_of

METRIC = TaskMetric(task="retrieval", view="image_text", metrics=("mean_recall", *RECALLS))


def write_uneven_set(folder: Path) -> Path:
    """Thirteen images: some show the same, have several captions, none in German, or captions that others have, too."""
    records = []
    for number, (colour, shape) in enumerate([*THINGS, *THINGS, ("red", "box")]):
        captions = {"en": [f"{LANGUAGES['en'][colour]} {LANGUAGES['en'][shape]}"] * (1 + number % 3)}
        captions["en"] = [f"{'old ' * place}{text}" for place, text in enumerate(captions["en"])]
        if number % 4:
            captions["de"] = [LANGUAGES["de"][colour]]
        record = ImageTextRecord(
            key=f"image_{number}",
            image=scene_bytes([(colour, shape)] * (1 + number % 2)),
            image_format="png",
            captions=captions,
            source="made",
            licence="CC0-1.0",
            identity=f"thing_{number % 10}",
        )
        records.append(record)
    write_image_set(folder, records)
    return folder


def settings_of(folder: Path, **finetune: Any) -> dict[str, Any]:
    """Settings of a run that would be trained and measured on the uneven set; the tokenizer is written beside it."""
    where = write_uneven_set(folder / "test")
    write_tokenizer(folder)
    settings = alone(folder, folder)
    view = {"batch_size": 6, "negative_group": 6, "matching_rows": 6, "num_lanes": 1, "max_tokens": 8}
    return {
        **settings,
        "finetune": {
            "task": "retrieval", "epochs": 2, "protocol": "zero-shot", "evaluation_batch": 4, "rerank_top_k": 4,
            "test_sets": {"uneven": str(where)}, **finetune,
        },
        "views": {
            "image_text": {
                "sources": {"train": {"path": str(where)}},
                "transform": {"method": "affine", "size": 16},
                **view,
            }
        },
        "model": {
            **settings["model"], "num_classes": 0, "pretraining_heads": True, "projection_width": 8,
            "matching_width": 16,
        },
    }  # fmt: skip


def evaluation_with(settings: dict[str, Any], engine: str = "plain") -> RetrievalEvaluation:
    """The evaluation of a run that has not begun."""
    from cclm.train.network import build_engine

    config: RunConfig = with_epochs(as_config({**settings, "engine": engine}))
    Path(config.run_folder).mkdir(parents=True, exist_ok=True)
    topology, ranks = Topology.from_environment(device="cpu"), collectives()
    ds_config = None
    if engine == "deepspeed":
        ds_config = resolve_ds_file(config.deepspeed, config.engine_facts(topology.world_size))
    module = module_of(config, ranks)
    with torch.no_grad():  # so that the matching head's scores differ
        for name, parameter in module.model.named_parameters():
            if name.startswith("matching_head"):
                parameter.mul_(20)
    built = build_engine(config, module, topology, ds_config)
    found = evaluation_of(METRIC, config, built, dataset_of(config), 0)
    assert isinstance(found, RetrievalEvaluation)
    return found
