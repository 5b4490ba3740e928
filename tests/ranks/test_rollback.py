"""Bad steps, a rollback and a replay on ZeRO-3 ranks, with the real model: as on one process with the plain engine."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from cclm.config import RunConfig
from cclm.engine.deepspeed.engine import DeepSpeedEngine
from cclm.engine.plain import PlainEngine
from cclm.run.checkpoints import Rollback, read_rollbacks
from cclm.run.signals import StopRequest
from cclm.train.build import open_run
from cclm.train.loop import train
from cclm.train.replay import EQUAL, main
from tests.fault import bad_at
from tests.ranks.harness import on_ranks
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config

pytestmark = pytest.mark.slow
STEPS = 10
BAD = (5, 6, 9)


def _train(config: RunConfig, ranks: tuple[int, ...]) -> bool:
    engine = PlainEngine if config.engine == "plain" else DeepSpeedEngine
    own_group = patch("cclm.train.build.process_group", lambda topology: nullcontext())
    fault = patch.object(engine, "forward", bad_at(engine.forward, lambda step: step in BAD, "gradient", ranks))
    with fault, nullcontext() if config.engine == "plain" else own_group, open_run(config, StopRequest()) as run:
        assert run is not None
        return train(run)


def _train_and_replay(config: RunConfig) -> list[tuple[int, str]]:
    assert _train(config, (1,))
    found = []
    for step in (2, 6, 8):
        said = io.StringIO()
        fault = bad_at(DeepSpeedEngine.forward, lambda step: step in BAD, "gradient", (1,))
        with (
            patch("cclm.train.build.process_group", lambda topology: nullcontext()),
            patch.object(DeepSpeedEngine, "forward", fault),
            redirect_stdout(said),
        ):
            code = main([config.run_folder, "--step", str(step)], "python -m pretrain")
        found.append((code, said.getvalue()))
    return found


def lines_of(config: RunConfig, name: str) -> list[dict[str, Any]]:
    text = (Path(config.run_folder) / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_ranks_roll_back_together_as_one_process_does(tmp_path: Path) -> None:
    settings = recipe(
        write_corpus(tmp_path),
        tmp_path / "ranks",
        optimizer={"total_steps": STEPS, "learning_rate": 0.002},
        track={"every_steps": 1, "tensorboard": False},
        checkpoint={"every_steps": 2, "keep": 9},
        health={"max_skipped": 1, "suspect_steps": 2},
        deepspeed="zero3_cpu",
    )
    config = as_config(settings)
    plain = replace(config, engine="plain", run_folder=str(tmp_path / "plain"))
    replays = on_ranks(_train_and_replay, 2, config, timeout_s=600.0)
    assert _train(plain, (0,))
    for one in (config, plain):
        assert read_rollbacks(Path(one.run_folder)) == [Rollback(step=7, to=2, first=3, stop=7)]
        assert [line["step"] for line in lines_of(one, "log.jsonl")] == [0, 1, 2, 7, 8, 9]
        assert [line["step"] for line in lines_of(one, "bad_steps.jsonl")] == [5, 6, 9]
        has_others = one is config
        assert ("speed/late_rank" in lines_of(one, "log.jsonl")[-1]["values"]) == has_others
    assert lines_of(config, "ledger.jsonl") == lines_of(plain, "ledger.jsonl")
    losses, expected = ([line["values"]["loss"] for line in lines_of(one, "log.jsonl")] for one in (config, plain))
    assert losses == pytest.approx(expected, rel=1e-4)
    for bad, on_one in zip(lines_of(config, "bad_steps.jsonl"), lines_of(plain, "bad_steps.jsonl"), strict=True):
        assert (bad["why"], bad["views"]) == ("gradient_not_finite", ["image_text", "text_pair"])
        assert bad["num_gradients"] and [rank["rank"] for rank in bad["ranks"]] == [0, 1]
        (whole,) = on_one["ranks"]
        for view, samples in whole["samples"].items():  # of both ranks together, in their order
            assert [one for rank in bad["ranks"] for one in rank["samples"][view]] == samples
    assert {code for of_rank in replays for code, _ in of_rank} == {EQUAL}
    assert "bad then, and bad again" in replays[0][1][1] and replays[1][1][1] == ""
