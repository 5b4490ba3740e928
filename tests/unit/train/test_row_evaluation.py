"""What is wrong with an annotation file that is measured is said before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from cclm.distributed.collectives import collectives
from cclm.distributed.topology import Topology
from cclm.errors import DataError
from cclm.recipe.epochs import with_epochs
from cclm.train.evaluation import RowEvaluation, TaskMetric, evaluation_of
from cclm.train.network import build_engine
from tests.tiny_finetune import alone, stand_in, write_tokenizer
from tests.tiny_training import as_config, dataset_of, module_of


def test_ids_that_stand_twice_are_refused_at_the_start(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    data = stand_in("xvnli", tmp_path / "data")
    config = with_epochs(as_config({**alone(data, tmp_path), "engine": "plain"}))
    Path(config.run_folder).mkdir()
    ranks, metric = collectives(), TaskMetric(task="xvnli", view="classify", metrics=("accuracy",))
    engine = build_engine(config, module_of(config, ranks), Topology.from_environment(device="cpu"), ranks, None)
    found = evaluation_of(metric, config, engine, dataset_of(config), 0)
    assert isinstance(found, RowEvaluation)
    with (data / "annotations/en/train.jsonl").open(encoding="utf-8") as rows:
        (data / "twice.jsonl").write_text(next(rows) * 2, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        found.check("en", "twice.jsonl", "test")
    assert (caught.value.reason, caught.value.where) == ("key_twice", str(data / "twice.jsonl"))
