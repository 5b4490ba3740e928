"""The speedometer in a real run of the plain engine, and what it reckons with."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cclm.costs import step
from cclm.costs.recipe import updates_of
from cclm.costs.step import StepCosts
from cclm.run.progress import SECTIONS, SHARE
from cclm.track.metrics import read_metrics
from tests.tiny_config import run_config
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config, run_to_the_end


def lines_of(folder: Path, **track: Any) -> list[dict[str, float]]:
    settings = recipe(
        write_corpus(folder / "corpus"),
        folder / "run",
        engine="plain",
        optimizer={"total_steps": 8, "learning_rate": 0.002},
        track={"every_steps": 4, "tensorboard": False, **track},
        checkpoint={"every_steps": 6, "background": False},
    )
    assert run_to_the_end(as_config(settings))
    return [values for _, values in read_metrics(folder / "run")]


@pytest.mark.slow
def test_a_run_says_how_fast_it_is_and_where_its_time_goes(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, csv=True, profile_steps=2)
    for line in lines:
        shares = {name.removeprefix(SHARE): value for name, value in line.items() if name.startswith(SHARE)}
        assert sum(shares.values()) == pytest.approx(1.0) and shares.keys() <= set(SECTIONS)
        assert all(shares[name] > 0 for name in ("data", "vision", "text", "fusion", "losses", "optimizer"))
        assert line["speed/tokens_per_s"] == pytest.approx(
            line["speed/image_text_tokens_per_s"] + line["speed/text_pair_tokens_per_s"]
        )
        assert 0.05 < line["speed/memory_gb"] <= line["speed/memory_peak_gb"] < 30
        towers = [line[f"speed/tflops/{name}"] for name in ("vision", "text", "fusion", "losses")]
        assert 0 < line["speed/tflops"] < max(towers), "time that computes nothing counts for the whole only"
        assert not any(name.startswith("speed/mfu") for name in line), "nobody knows a CPU's peak"
    assert any(line.get(f"{SHARE}checkpoint", 0.0) > 0 for line in lines)
    rows = (tmp_path / "run" / "log.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + len(lines) and "speed/time/vision" in rows[0].split(",")
    trace = json.loads(gzip.decompress((tmp_path / "run/profile/rank_0.json.gz").read_bytes()))
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert names.count("Optimizer.step#AdamW.step") == 2, "steps that are recorded"
    assert "aten::" in (tmp_path / "run/profile/rank_0.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_costs_lie_on_straight_lines_between_the_shares_that_are_counted() -> None:
    one = {"num_layers": 1}
    config = run_config(model={"vision": one, "text": one, "fusion": one})
    costs, counter = StepCosts(config), step.Counter(config)

    def counted(fill: float) -> float:
        updates = updates_of(config, counter, dict.fromkeys(config.views, fill))
        return sum(call.rows * call.cost.flops for update in updates for call in update.calls)

    def told(fill: float) -> float:
        found = costs.flops(dict.fromkeys(config.views, fill))
        return math.fsum(value for parts in found.values() for value in parts.values())

    assert told(0.5) == pytest.approx(counted(0.5)) and told(1.0) == pytest.approx(counted(1.0))
    assert told(9 / 16) == pytest.approx((told(0.5) + told(5 / 8)) / 2)
    assert told(9 / 16) == pytest.approx(counted(9 / 16), rel=0.1)
    assert told(0.01) < told(0.5) < told(1.0) == told(1.2)


@pytest.mark.slow
def test_a_network_whose_costs_cannot_be_counted_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(costs: StepCosts, text_fill: object) -> Any:
        raise NotImplementedError("it looks at values")

    monkeypatch.setattr(StepCosts, "flops", fail)
    lines = lines_of(tmp_path)
    assert len(lines) > 1 and all("speed/step_s" in line and "speed/tflops" not in line for line in lines)
    assert capsys.readouterr().err.count("FLOP/s are not known of this network (NotImplementedError") == 1


def test_a_step_on_some_of_the_patches_is_not_counted() -> None:
    config = run_config()
    assert StepCosts.are_known(config)
    vision = replace(config.model.vision, keep_patches=0.5)
    assert not StepCosts.are_known(replace(config, model=replace(config.model, vision=vision)))
