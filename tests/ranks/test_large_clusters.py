"""The DeepSpeed files for 64 GPUs and more train as the plain engine does: real towers as leaf modules, parameters kept
between forward and backward pass, and a second copy of them inside each group of ranks (hpZ)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.config import RunConfig
from cclm.distributed.collectives import collectives
from cclm.distributed.topology import Topology
from cclm.engine.ds_config import resolve_ds_file
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Engine
from cclm.train.network import build_engine
from cclm.train.updates import merge_metrics, updates_of
from tests.ranks.harness import Case, on_ranks, train_plain, train_ranks
from tests.ranks.toy import make_toy, mixed_batch
from tests.tiny_run import shrink, write_corpus, write_recipe
from tests.tiny_training import dataset_of, module_of, read

RECIPES = {"cclm_3m": "SwinBlock", "cclm_x2vlm_base": "BeitBlock"}
"""Recipe → the blocks of its tower."""
STEPS = 3


def losses(config: RunConfig, engine: Engine) -> list[dict[str, float]]:
    """Metrics of each step."""
    dataset, log = dataset_of(config, engine.rank, engine.world_size), []
    for step in range(STEPS):
        metrics = []
        for part in updates_of(dataset[step], config.data.schedule):
            found = engine.forward(part)
            engine.backward(found)
            engine.update(step)
            metrics.append(found.metrics)
        log.append(engine.reduce_mean(merge_metrics(metrics)))
    return log


def train_rank(paths: list[str]) -> list[tuple[list[dict[str, float]], set[str]]]:
    """On one rank: each recipe's losses, and the classes of its leaf modules."""
    torch.set_num_threads(1)
    found = []
    for path in paths:
        config, topology, talk = read(path), Topology.from_environment(device="cpu"), collectives()
        ds_config = resolve_ds_file(config.deepspeed, config.engine_facts(topology.world_size))
        module = module_of(config, talk)
        engine = build_engine(config, module, topology, ds_config)
        log = losses(config, engine)
        found.append((log, {type(part).__name__ for part in module.modules() if getattr(part, "_z3_leaf", False)}))
    return found


def zero_options(name: str) -> dict[str, Any]:
    """What a shipped file says about ZeRO."""
    found: dict[str, Any] = json.loads((Path("ds_configs") / f"{name}.json").read_text(encoding="utf-8"))
    return found["zero_optimization"]  # type: ignore[no-any-return]


def in_fp32(folder: Path) -> str:
    """The file for 64 GPUs in the precision that the plain engine has."""
    path = folder / "ds.json"
    path.write_text(json.dumps({"zero_optimization": zero_options("zero3_bf16_64gpus")}), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_real_towers_train_alike_as_leaf_modules(tmp_path: Path) -> None:
    folder, paths = write_corpus(tmp_path), []
    for recipe in RECIPES:
        settings = shrink(recipe, folder, folder / "run", total_steps=STEPS, warmup_steps=1, learning_rate=0.002)
        settings |= {"deepspeed": in_fp32(folder)}
        for part in ("text", "fusion"):  # ranks draw dropout of their own
            settings["model"][part] |= {"dropout": 0.0, "attention_dropout": 0.0}
        settings["model"]["vision"]["drop_path"] = 0.0
        paths.append(str(write_recipe(folder / f"{recipe}.yaml", settings)))
    ranks = on_ranks(train_rank, 2, paths, timeout_s=600.0)
    for path, block, (log, leaves) in zip(paths, RECIPES.values(), ranks[0], strict=True):
        config = read(path)
        plain = losses(config, PlainEngine(module_of(config), config.optimizer, seed=config.seed))
        assert leaves == {"TransformerLayer", block}
        for ours, theirs in zip(log, plain, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4), path


@pytest.mark.slow
def test_a_second_copy_inside_each_group_of_ranks_changes_no_number() -> None:
    """hpZ with two groups of two ranks, as two nodes have; nothing is kept between the passes, so the copy is used."""
    options = zero_options("zero3_bf16_hpz") | {"zero_hpz_partition_size": 2, "stage3_max_reuse_distance": 0}
    del options["stage3_param_persistence_threshold"]
    case = Case(make_module=make_toy, make_batch=mixed_batch, num_steps=4, zero_options=options)
    ranks, plain = train_ranks(case, world_size=4), train_plain(case)
    assert ranks[0].losses == pytest.approx(plain.losses, rel=1e-4)
    assert ranks[0].grad_norms == pytest.approx(plain.grad_norms, rel=1e-4)
