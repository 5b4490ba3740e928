"""What ZeRO-3 ranks measure while they pre-train equals what `cclm evaluate` measures of their checkpoints."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from cclm.cli.__main__ import main
from cclm.config import RunConfig
from cclm.run.checkpoints import complete_checkpoints, pinned, step_folder
from cclm.run.signals import StopRequest
from cclm.train.build import open_run
from cclm.train.loop import train
from tests.ranks.harness import on_ranks
from tests.tiny_retrieval import write_uneven_set
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config
from tests.zero_shot import evaluated

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def _train(config: RunConfig) -> bool:
    own_group = patch("cclm.train.build.process_group", lambda topology: nullcontext())
    with own_group, open_run(config, StopRequest()) as run:
        assert run is not None
        return train(run)


def test_on_two_ranks_and_gone_on_with_on_three(tmp_path: Path) -> None:
    corpus, run = write_corpus(tmp_path), tmp_path / "run"
    sets = {"uneven": str(write_uneven_set(tmp_path / "uneven"))}
    config = as_config(
        recipe(
            corpus,
            run,
            optimizer={"total_steps": 4, "learning_rate": 0.01},
            checkpoint={"every_steps": 100, "keep": 1},
            evaluation={"every_steps": 2, "sets": sets, "batch_size": 3, "rerank_top_k": 4},
        )
    )
    first = replace(config, optimizer=replace(config.optimizer, total_steps=2))
    assert on_ranks(_train, 2, first) == [True] * 2
    expected = {2: evaluated(config, step_folder(run, 2))}
    assert on_ranks(_train, 3, config) == [True] * 3
    assert main(["export", str(step_folder(run, 4)), "--to", str(tmp_path / "export")]) == 0
    expected[4] = evaluated(config, tmp_path / "export")
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [line["updates"] for line in lines] == [2, 4]
    for line in lines:
        assert line["numbers"] == pytest.approx(expected[line["updates"]], abs=1e-6)
    best = max(lines, key=lambda line: float(line["value"]))["updates"]
    assert pinned(run) == step_folder(run, best)
    assert step_folder(run, 4) in complete_checkpoints(run)
