"""Predictions for rows are the same on one, two and three ranks, whatever is left over in the last round of batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cclm.distributed.collectives import collectives
from cclm.distributed.topology import Topology
from cclm.engine.ds_config import resolve_ds_file
from cclm.recipe.epochs import with_epochs
from cclm.train.row_evaluation import predict_rows
from cclm.train.shared_evaluation import turns
from cclm.views.annotated.rows import RowSet
from cclm.views.annotated.source import AnnotatedSource, AnnotatedView, Line, batches_of
from tests.ranks.harness import on_ranks
from tests.tiny_finetune import SIZES, alone, stand_in, write_tokenizer
from tests.tiny_training import as_config, dataset_of, module_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def predictions(settings: dict[str, Any], batch_size: int, engine: str) -> Sequence[Line]:
    """Those of this rank, which are everybody's."""
    from cclm.train.network import build_engine

    config = with_epochs(as_config({**settings, "engine": engine}))
    topology, ranks = Topology.from_environment(device="cpu"), collectives()
    ds_config = None
    if engine == "deepspeed":
        ds_config = resolve_ds_file(config.deepspeed, config.engine_facts(topology.world_size))
    module = module_of(config, ranks)
    built = build_engine(config, module, topology, ds_config)
    source, view = dataset_of(config).sources["classify"], module.views["classify"]
    assert isinstance(source, AnnotatedSource)
    assert isinstance(view, AnnotatedView)
    rows = RowSet(config.views["classify"].path("annotations/en/test.jsonl"), "xvnli", "en")  # type: ignore[attr-defined]
    parts = turns(built, list(batches_of(rows.rows, batch_size)), partial(predict_rows, built, view, source))
    return [line for lines in parts for line in lines]


@pytest.mark.parametrize("batch_size", [5, 7, 18, 100])
def test_they_are_equal_on_any_number_of_ranks(tmp_path: Path, batch_size: int) -> None:
    write_tokenizer(tmp_path)
    settings = alone(stand_in("xvnli", tmp_path / "data"), tmp_path)
    expected = predictions(settings, batch_size, "plain")
    assert [one["id"].rpartition("-")[2] for one in expected] == 6 * ["contradiction", "entailment", "neutral"]
    assert len({one["score"] for one in expected}) > SIZES["classes"]
    for world_size in (1, 2, 3):
        found = on_ranks(predictions, world_size, settings, batch_size, "deepspeed", timeout_s=300)
        assert all(of_rank == expected for of_rank in found), world_size
